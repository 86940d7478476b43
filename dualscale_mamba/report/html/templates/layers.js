"use strict";
/* Where the outliers live: numbers by layer, and the histogram of one layer with the code's levels. */
(() => {
  const { data, element, plain, number, fill, cell, colour, faded, variable, axis, chart, redraw, narrow, choose, onChoice } = report;
  const { runs: layered, curves, histograms, levels } = data.layers;
  const LINEAR_BELOW = 0.1;
  const places = Object.keys(layered).filter((run) => Object.keys(layered[run]).length);
  if (!places.length) return;
  element("no-layers").hidden = true;
  element("with-layers").hidden = false;

  const mode = (run) => data.runs[run].mode;
  const bent = (value) => Math.asinh(value / LINEAR_BELOW);
  const siteOf = (run) => layered[run]?.[element("site").value];
  const curvesOf = (run) => (siteOf(run)?.curves === undefined ? null : curves[siteOf(run).curves]);
  const picturesOf = (run) => siteOf(run)?.pictures ?? {};
  const chosen = () => element("run").value;
  const other = () => element("other-run").value;
  const layersOf = (run) => [...new Set([...(curvesOf(run)?.layer ?? []), ...Object.keys(picturesOf(run)).map(Number)])].sort((a, b) => a - b);
  const layer = () => layersOf(chosen())[Number(element("layer").value)] ?? 0;
  const colourOf = (run) => (run === other() && mode(run) === mode(chosen()) ? variable("--ink") : colour(mode(run)));

  const line = (own, key, name, ink, more = {}) => ({
    x: own.layer, y: own[key], name: plain(name), mode: own.layer.length > 40 ? "lines" : "lines+markers",
    line: { color: ink, width: 2, dash: more.dash ?? "solid" }, marker: { color: ink, size: 6, symbol: more.symbol ?? "circle" },
    hovertemplate: `layer %{x}: %{y:.4~g} ${more.unit ?? ""}<extra>${plain(name)}</extra>`,
  });
  const marked = () => [{
    type: "line", x0: layer(), x1: layer(), yref: "paper", y0: 0, y1: 1, line: { color: variable("--edge"), width: 1, dash: "dot" },
  }];
  const step = () => Math.max(1, Math.ceil(layersOf(chosen()).length / (narrow() ? 8 : 16)));
  const byLayer = (title, traces, more = {}) => ({
    traces,
    layout: { shapes: marked(), xaxis: axis({ title: "layer", tickformat: "d", dtick: step() }), yaxis: axis({ title, nticks: 6, ...more }) },
  });
  const signal = () => {
    const traces = [];
    const own = curvesOf(chosen());
    const beside = curvesOf(other());
    if (own) traces.push(line(own, "sqnr_single_db", "plain int8, same observer", variable("--edge"), { dash: "dash", symbol: "square", unit: "dB" }));
    if (own) traces.push(line(own, "sqnr_db", data.runs[chosen()].label, colourOf(chosen()), { unit: "dB" }));
    if (beside) traces.push(line(beside, "sqnr_db", data.runs[other()].label, colourOf(other()), { symbol: "diamond", unit: "dB" }));
    return byLayer("signal to noise, dB", traces);
  };
  const reach = () => {
    const traces = [];
    const own = curvesOf(chosen());
    const beside = curvesOf(other());
    if (own) traces.push(line(own, "range_max", "largest value", variable("--edge"), { dash: "dash", symbol: "square" }));
    if (own) traces.push(line(own, "threshold", `threshold, ${data.runs[chosen()].label}`, colourOf(chosen())));
    if (beside) traces.push(line(beside, "threshold", `threshold, ${data.runs[other()].label}`, colourOf(other()), { symbol: "diamond" }));
    return byLayer("value", traces, { rangemode: "tozero" });
  };

  const ticks = (low, high) => [-100, -30, -10, -3, -1, -0.25, 0, 0.25, 1, 3, 10, 30, 100, 300].filter((tick) => tick >= low * 1.2 && tick <= high * 1.2);
  const upright = (value, ink, dash) => ({ type: "line", x0: bent(value), x1: bent(value), yref: "y domain", y0: 0, y1: 1, line: { color: ink, width: 1.6, dash } });
  /* A text beside a line, on the side where there is room. */
  const beside = (value, high) => (bent(value) > 0.6 * bent(high) ? { xanchor: "right", xshift: -4 } : { xanchor: "left", xshift: 4 });
  const histogram = () => {
    const shown = [chosen(), other()].filter((run, turn) => run !== "" && (turn === 0 || run !== chosen()) && picturesOf(run)[layer()]);
    const traces = [];
    const shapes = [];
    const annotations = [];
    const rows = [];
    let [low, high, floor] = [0, 1, -6];
    for (const run of shown) {
      const picture = picturesOf(run)[layer()];
      const [centres, share] = histograms[picture.histogram];
      const seen = centres.map((_, i) => i).filter((i) => share[i] > 0);
      const ink = colourOf(run);
      if (!traces.length) {
        const least = Math.min(...seen.map((i) => share[i]));
        [low, high] = [centres[seen[0]], centres[seen[seen.length - 1]]];
        floor = Math.log10(least) - 0.3;
        traces.push({
          x: centres.map(bent), y: share.map((value) => Math.max(value, least / 1e3)), mode: "lines", fill: "tozeroy",
          line: { shape: "hvh", color: colour(""), width: 1 }, fillcolor: faded(colour(""), 0.3), showlegend: false,
          customdata: centres.map((value, i) => [value, share[i]]),
          hovertemplate: "around %{customdata[0]:.3~g}: %{customdata[1]:.3~g} of the values<extra></extra>",
        });
      }
      if (picture.threshold !== null) {
        shapes.push(upright(picture.threshold, ink, "dash"));
        annotations.push({ x: bent(picture.threshold), y: run === shown[0] ? 1 : 0.9, yref: "y domain", text: `threshold ${number(picture.threshold)}`, showarrow: false, font: { color: ink }, ...beside(picture.threshold, high) });
        if (low < -picture.threshold) shapes.push(upright(-picture.threshold, ink, "dash"));
      }
      const own = levels[picture.levels];
      if (own.length) {
        rows.push(run);
        traces.push({
          x: own.map(bent), y: own.map(() => -rows.length), yaxis: "y2", mode: "markers", name: plain(`${data.runs[run].label}: ${own.length} levels`),
          marker: { symbol: "line-ns-open", size: shown.length > 1 ? 15 : 22, color: ink, line: { width: 1 } }, customdata: own, hovertemplate: "level %{customdata:.4~g}<extra></extra>",
        });
        if (picture.knee !== null) {
          traces.push({
            x: [bent(picture.knee)], y: [0.42 - rows.length], yaxis: "y2", mode: "markers", showlegend: false, cliponaxis: false,
            marker: { symbol: "triangle-down", size: 9, color: variable("--ink") }, customdata: [picture.knee],
            hovertemplate: "knee %{customdata:.4~g}: coarse codes begin<extra></extra>",
          });
        }
        high = Math.max(high, ...own);
        low = Math.min(low, ...own);
      }
    }
    const shownTicks = ticks(low, high).filter((tick, i, all) => !narrow() || i % 2 === all.indexOf(0) % 2);
    if (!shown.length) annotations.push({ xref: "paper", yref: "paper", x: 0.5, y: 0.6, showarrow: false, text: "no histogram of this run in this page" });
    return {
      traces,
      layout: {
        shapes, annotations, showlegend: true,
        xaxis: axis({ title: "value", range: [bent(low) - 0.15, bent(high) + 0.15], tickvals: shownTicks.map(bent), ticktext: shownTicks.map(String), showgrid: false, anchor: "y2" }),
        yaxis: axis({ title: "share of values", type: "log", domain: [0.24, 1], range: [floor, 0], dtick: narrow() ? 2 : 1, exponentformat: "power" }),
        yaxis2: axis({ domain: [0, 0.2], range: [-Math.max(rows.length, 1) - 0.7, -0.3], showticklabels: false, ticks: "", showgrid: false, fixedrange: true }),
      },
    };
  };

  const table = () => {
    const own = curvesOf(chosen());
    const body = element("layer-table").tBodies[0];
    const rows = (own?.layer ?? []).map((at, i) => {
      const row = document.createElement("tr");
      const gain = own.sqnr_db[i] !== null && own.sqnr_single_db[i] !== null ? own.sqnr_db[i] - own.sqnr_single_db[i] : null;
      row.append(
        cell("th", String(at)), cell("td", number(own.threshold[i])), cell("td", number(own.range_max[i])),
        cell("td", own.outlier_share[i] === null ? "" : number(own.outlier_share[i] * 100)), cell("td", number(own.codes_used[i])),
        cell("td", number(own.sqnr_single_db[i], 2)), cell("td", number(own.sqnr_db[i], 2)),
        cell("td", gain === null ? "" : `${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(2)}`), cell("td", number(own.bits_per_value[i])),
      );
      if (at === layer()) row.setAttribute("aria-current", "true");
      return row;
    });
    if (!rows.length) {
      const row = document.createElement("tr");
      const only = cell("td", "This site is floating point in this run.", "word");
      only.colSpan = 9;
      row.append(only);
      rows.push(row);
    }
    body.replaceChildren(...rows);
  };

  const show = () => {
    element("layer-text").textContent = `${layer()} (${layersOf(chosen())[0]} to ${layersOf(chosen()).at(-1)})`;
    element("layer").setAttribute("aria-valuetext", `layer ${layer()}`);
    table();
    for (const id of ["signal", "reach", "histogram"]) redraw(id);
  };
  const suitLayer = () => {
    const all = layersOf(chosen());
    element("layer").max = String(Math.max(all.length - 1, 0));
    let best = 0;
    const own = curvesOf(chosen()) ?? curvesOf(other());
    if (own) best = all.indexOf(own.layer[own.range_max.indexOf(Math.max(...own.range_max))]);
    element("layer").value = String(Math.max(best, 0));
  };
  const suitSite = () => {
    const names = Object.keys(layered[chosen()]);
    const before = element("site").value;
    const usual = names.find((name) => layered[chosen()][name].pictures) ?? names[0];
    fill(element("site"), names.map((name) => [name, name]), names.includes(before) ? before : usual);
    suitLayer();
  };

  const entries = places.map((run) => [run, report.name(data.runs[run])]);
  const pictured = data.layers.pictured.map(String).filter((run) => places.includes(run));
  const coded = pictured.filter((run) => Object.values(layered[run]).some((site) => site.curves !== undefined));
  const wanted = (arm, name) => coded.find((run) => data.runs[run].arm === arm) ?? coded.find((run) => mode(run) === name);
  const first = wanted("treatment", "dual") ?? coded[0] ?? places[0];
  const second = wanted("baseline", "single");
  fill(element("run"), entries, first);
  fill(element("other-run"), [["", "no other run"], ...entries], second && second !== first ? second : "");
  suitSite();
  element("run").addEventListener("change", () => choose(chosen()));
  element("other-run").addEventListener("change", show);
  element("site").addEventListener("change", () => { suitLayer(); show(); });
  element("layer").addEventListener("input", show);
  onChoice((run) => {
    element("run").value = run;
    suitSite();
    show();
  });
  chart("signal", signal);
  chart("reach", reach);
  chart("histogram", histogram);
  show();
})();
