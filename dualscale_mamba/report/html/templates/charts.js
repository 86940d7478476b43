"use strict";
/* Accuracy against cost, and metrics against the percentile. */
(() => {
  const { data, element, plain, number, fill, colour, faded, variable, axis, chart, redraw, narrow } = report;
  const { metrics, runs } = data;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "x", "pentagon", "hexagon", "bowtie", "hourglass"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const isCost = (metric) => /^(latency|memory)\//.test(metric.name);
  const measured = (place) => runs.some((run) => run.values[place] !== null);
  const places = [...metrics.keys()].filter(measured);
  const quality = places.filter((place) => metrics[place].better && !isCost(metrics[place]));
  const cost = places.filter((place) => isCost(metrics[place]));
  const named = (list) => list.map((place) => [place, metrics[place].title]);
  const axisTitle = (metric) => (metric.better && !narrow() ? `${metric.title} (${metric.better} is better)` : metric.title);
  const isLogarithmic = (metric) => /\/(kl|delta_nll)$/.test(metric.name);
  const unique = (values) => [...new Set(values)];
  const varies = (place) => unique(runs.map((run) => run.values[place]).filter((value) => value !== null)).length > 1;
  const shownValue = (metric, value) => `${number(value, metric.decimals)} ${metric.unit}`.trim();
  const positive = (value) => (value > 0 ? value : null);

  /* Few labels on a logarithmic axis, whatever it spans. */
  const logTicks = (values) => {
    const seen = values.filter((value) => value > 0);
    if (!seen.length) return {};
    const [low, high] = [Math.log10(Math.min(...seen)), Math.log10(Math.max(...seen))];
    const steps = high - low > 2.5 ? [1] : high - low > 1 ? [1, 3] : [1, 2, 3, 5];
    const tickvals = [];
    for (let power = Math.floor(low) - 1; power <= Math.ceil(high); power += 1) {
      for (const step of steps) tickvals.push(step * 10 ** power);
    }
    return { tickvals, ticktext: tickvals.map(report.brief) };
  };

  const errors = (chosen, place, side) => {
    const ends = chosen.map((run) => run.intervals[place]);
    if (!ends.some(Boolean)) return {};
    const above = chosen.map((run, i) => (ends[i] ? ends[i][1] - run.values[place] : 0));
    const below = chosen.map((run, i) => (ends[i] ? run.values[place] - ends[i][0] : 0));
    return { [`error_${side}`]: { type: "data", symmetric: false, array: above, arrayminus: below, thickness: 1.2, width: 3 } };
  };
  /* Runs that no other beats in both directions, from the cheapest on. */
  const front = (chosen, x, y) => {
    const sign = (place) => (metrics[place].better === "higher" ? -1 : 1);
    const sorted = [...chosen].sort((a, b) => sign(x) * (a.values[x] - b.values[x]) || sign(y) * (a.values[y] - b.values[y]));
    let best = Infinity;
    return sorted.filter((run) => {
      const value = sign(y) * run.values[y];
      if (value >= best) return false;
      best = value;
      return true;
    });
  };
  const hover = (run, ...shown) => [
    `<b>${plain(report.name(run))}</b>`,
    ...shown.map((place) => {
      const ends = run.intervals[place];
      const range = ends ? ` (95 %: ${ends.map((end) => number(end, metrics[place].decimals)).join(" to ")})` : "";
      return `${plain(metrics[place].head)}: ${plain(shownValue(metrics[place], run.values[place]))}${range}`;
    }),
  ].join("<br>");

  const choice = (id) => Number(element(id).value);
  const scatter = () => {
    const [x, y, key] = [choice("axis-x"), choice("axis-y"), element("symbol-key").value];
    const log = element("log-y").checked;
    const chosen = runs.filter((run) => run.values[x] !== null && run.values[y] !== null && (!log || run.values[y] > 0));
    const kinds = key ? unique(data.keys[key]) : [];
    const symbolOf = (run) => (key ? SYMBOLS[kinds.indexOf(data.keys[key][runs.indexOf(run)]) % SYMBOLS.length] : "circle");
    const best = front(chosen, x, y);
    const traces = [{
      x: best.map((run) => run.values[x]), y: best.map((run) => run.values[y]), mode: "lines", name: "Pareto front",
      line: { color: variable("--edge"), width: 1.5, dash: "dot" }, hoverinfo: "skip",
    }];
    for (const mode of unique(chosen.map((run) => run.mode))) {
      const own = chosen.filter((run) => run.mode === mode);
      traces.push({
        x: own.map((run) => run.values[x]), y: own.map((run) => run.values[y]), mode: "markers", legendgroup: mode, showlegend: false,
        marker: { color: colour(mode), size: 10, symbol: own.map(symbolOf), line: { color: variable("--paper"), width: 1 } },
        text: own.map((run) => hover(run, x, y)), hovertemplate: "%{text}<extra></extra>",
        ...errors(own, x, "x"), ...errors(own, y, "y"),
      });
      traces.push({
        x: [null], y: [null], mode: "markers", name: plain(mode || "run"), legendgroup: mode, hoverinfo: "skip",
        marker: { color: colour(mode), size: 10, symbol: "circle" },
      });
    }
    for (const kind of kinds) {
      traces.push({
        x: [null], y: [null], mode: "markers", name: plain(`${key.split(".").pop()} ${kind}`), hoverinfo: "skip",
        marker: { color: variable("--muted"), size: 9, symbol: SYMBOLS[kinds.indexOf(kind) % SYMBOLS.length] },
      });
    }
    const values = chosen.map((run) => run.values[y]);
    return {
      traces,
      layout: {
        xaxis: axis({ title: axisTitle(metrics[x]), nticks: narrow() ? 5 : 10 }),
        yaxis: axis({ title: axisTitle(metrics[y]), type: log ? "log" : "linear", ...(log ? logTicks(values) : {}) }),
      },
    };
  };

  const startScatter = () => {
    const section = element("tradeoff");
    if (!quality.length || !cost.length) {
      section.replaceChildren(section.querySelector("h2"), report.cell("p", "No run has measured both an accuracy and a cost.", "note"));
      return;
    }
    fill(element("axis-y"), named(quality), quality[0]);
    fill(element("axis-x"), named(cost), cost.find(varies) ?? cost[0]);
    const keys = Object.keys(data.keys).filter((key) => key !== "scale_mode" && key !== "arm");
    const usual = keys.find((key) => !key.startsWith("observer") && !key.startsWith("scale_mode") && unique(data.keys[key]).length <= 8);
    fill(element("symbol-key"), [["", "one for all"], ...keys.map((key) => [key, key])], usual ?? "");
    const suit = () => { element("log-y").checked = isLogarithmic(metrics[choice("axis-y")]); };
    suit();
    for (const id of ["axis-x", "axis-y", "symbol-key", "log-y"]) {
      element(id).addEventListener("change", () => { if (id === "axis-y") suit(); redraw("scatter"); });
    }
    chart("scatter", scatter);
  };

  /* 100 lies beyond the end of a logarithmic axis of what is above the threshold. */
  const curved = runs.filter((run) => run.percentile !== null && run.mode !== "fp16" && run.values.some((value) => value !== null));
  const percentiles = unique(curved.map((run) => run.percentile)).sort((a, b) => a - b);
  const tails = percentiles.filter((value) => value < 100).map((value) => -Math.log10(100 - value));
  const end = (tails.length ? Math.max(...tails) : 0) + 0.5;
  const place = (percentile) => (percentile >= 100 ? end : -Math.log10(100 - percentile));

  /* Round percentiles first, then whatever fits between them. */
  const isRound = (value) => value === 100 || Math.abs(Math.log10(100 - value) - Math.round(Math.log10(100 - value))) < 1e-6;
  const readableTicks = (most) => {
    const [low, high] = [place(percentiles[0]), place(percentiles.at(-1))];
    const kept = [];
    for (const value of [...percentiles].sort((a, b) => isRound(b) - isRound(a) || a - b)) {
      if (kept.every((other) => Math.abs(place(other) - place(value)) * most >= high - low)) kept.push(value);
    }
    return kept;
  };

  const curves = () => {
    const metric = choice("curve-y");
    const log = element("log-curve").checked;
    const allowed = (value) => (log ? positive(value) : value);
    const lines = unique(curved.map((run) => run.series));
    const byMode = new Map();
    const traces = [];
    for (const series of lines) {
      const points = curved.filter((run) => run.series === series && run.values[metric] !== null).sort((a, b) => a.percentile - b.percentile);
      if (!points.length) continue;
      const mode = points[0].mode;
      const turn = byMode.get(mode) ?? 0;
      byMode.set(mode, turn + 1);
      const ink = colour(mode);
      const banded = points.filter((run) => run.intervals[metric]);
      if (banded.length > 1) {
        const xs = banded.map((run) => place(run.percentile));
        traces.push({
          x: [...xs, ...[...xs].reverse()],
          y: [...banded.map((run) => allowed(run.intervals[metric][1])), ...[...banded].reverse().map((run) => allowed(run.intervals[metric][0]))],
          fill: "toself", fillcolor: faded(ink, 0.14), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, legendgroup: series,
        });
      }
      const order = Object.keys(data.palette).indexOf(mode);
      traces.push({
        x: points.map((run) => place(run.percentile)), y: points.map((run) => allowed(run.values[metric])), name: plain(series), legendgroup: series,
        mode: "lines+markers", line: { color: ink, width: 2, dash: DASHES[turn % DASHES.length] },
        marker: { color: ink, size: 8, symbol: SYMBOLS[(order + SYMBOLS.length) % SYMBOLS.length] },
        text: points.map((run) => `${hover(run, metric)}<br>percentile: ${run.percentile}`), hovertemplate: "%{text}<extra></extra>",
      });
    }
    const shapes = [];
    const off = runs.find((run) => run.mode === "fp16" && allowed(run.values[metric]));
    if (off) {
      shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: off.values[metric], y1: off.values[metric], line: { color: variable("--edge"), dash: "dot", width: 1.5 } });
    }
    const ticks = readableTicks(narrow() ? 6 : 16);
    const values = curved.flatMap((run) => [run.values[metric], ...(run.intervals[metric] ?? [])]);
    return {
      traces,
      layout: {
        xaxis: axis({ title: narrow() ? "percentile, %" : "percentile of the magnitudes at the threshold, %", tickvals: ticks.map(place), ticktext: ticks.map(String), tickangle: 0 }),
        yaxis: axis({ title: axisTitle(metrics[metric]), type: log ? "log" : "linear", ...(log ? logTicks(values) : {}) }),
        shapes,
        annotations: off ? [{ xref: "paper", x: 1, y: log ? Math.log10(off.values[metric]) : off.values[metric], text: "fp16 (off)", showarrow: false, yanchor: "bottom", xanchor: "right" }] : [],
      },
    };
  };

  const startCurves = () => {
    const lines = unique(curved.map((run) => run.series));
    const several = lines.some((series) => unique(curved.filter((run) => run.series === series).map((run) => run.percentile)).length > 1);
    if (!several || !quality.length) return;
    for (const hidden of document.querySelectorAll(".needs-percentiles")) hidden.hidden = false;
    fill(element("curve-y"), named(quality), quality[0]);
    const suit = () => { element("log-curve").checked = isLogarithmic(metrics[choice("curve-y")]); };
    suit();
    element("curve-y").addEventListener("change", () => { suit(); redraw("curves"); });
    element("log-curve").addEventListener("change", () => redraw("curves"));
    chart("curves", curves);
  };

  startScatter();
  startCurves();
})();
