from .emu import core, load, options
