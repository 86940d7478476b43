import sys, time, torch, dataclasses
sys.path[:0]=["TREE","TREE/tests/ops","lab/emu"]
torch.set_num_threads(1)
import emu
from layer_cases import *
import argparse
ap=argparse.ArgumentParser(); ap.add_argument("--width",type=int,default=768); ap.add_argument("--bits",type=int,default=8); ap.add_argument("--batch",type=int,default=1)
ap.add_argument("--noknee",action="store_true"); ap.add_argument("--seed",type=int,default=0); ap.add_argument("--async_",default="late"); ap.add_argument("--unin",action="store_true"); ap.add_argument("--calls",type=int,default=2)
ap.add_argument("--composed",action="store_true"); ap.add_argument("--ahead",action="store_true"); ap.add_argument("--resid",type=int,default=0); ap.add_argument("--spur",action="store_true")
ap.add_argument("--taps",type=int,default=4); ap.add_argument("--noextras",action="store_true"); ap.add_argument("--nores",action="store_true"); ap.add_argument("--kneeat",type=float,default=31.0); ap.add_argument("--half",action="store_true")
o=ap.parse_args()
src=["mamba_layer_step.cu"]
if o.composed: src+=["norm.cu","conv*.cu","state_update.cu","hadamard.cu","linear*.cu","few_*.cu","gemm*.cu","weights.cu"]
em=emu.load("TREE",src)
from dualscale_mamba import ops
from dualscale_mamba.ops import dispatch
from dualscale_mamba.ops.composed import Composed
emu.options(seed=o.seed,async_=o.async_,uninitialised=o.unin,spurious=o.spur,max_instructions=4_000_000_000)
if o.resid: emu.options(resident=o.resid)
rank={2560:160,768:48,1024:64,2048:128,1536:96}[o.width]
size=Size(o.width,rank,bits=o.bits,knee=not o.noknee,batch=o.batch,taps=o.taps,has_residual=not o.nores,has_extras=not o.noextras,knee_at=o.kneeat,residual_dtype=torch.float16 if o.half else torch.float32)
lay=Layer(size,seed=3)
args=lay.copied(); other=lay.copied()
dispatch._loaded.add("cpu")
for call in range(o.calls):
    t=time.time()
    a=dict(args)
    out,total=em.mamba_layer_step(*a.values(),o.ahead)
    t1=time.time()-t
    if o.composed:
        def op(name):
            return getattr(em,name)
    else:
        op=dispatch._reference.__getitem__
    t=time.time()
    w,wt=Composed(op).mamba_layer_step(*other.values(),False)
    t2=time.time()-t
    def cmp(n,x,y):
        if x.dtype==torch.int8:
            d=(x.int()-y.int()).abs(); return f"{n}: {int((d>0).sum())} codes differ, max {int(d.max())}"
        rel=float((x.double()-y.double()).norm()/y.double().norm()); return f"{n}: rel {rel:.2e} equal {torch.equal(x,y)}"
    print(f"call {call} {t1:.1f}s {t2:.1f}s |", cmp("out",out,w),"|",cmp("total",total,wt),"|",cmp("conv",args["conv_state"],other["conv_state"]),"|",cmp("state",args["state"],other["state"]), "| epoch", int(args["workspace"][0]), flush=True)
    # next call: hidden is out
    args["hidden"],args["residual"]=w,wt; other["hidden"],other["residual"]=w,wt
    if not o.composed:
        for nme in ("conv_state","state"): args[nme].copy_(other[nme])
