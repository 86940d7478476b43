"use strict";
/* What all parts of the page share: its data, colours, numbers, and charts that are drawn when they are seen. */
const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const element = (id) => document.getElementById(id);
  for (const hidden of document.querySelectorAll(".tools[hidden]")) hidden.hidden = false;

  /* Run data may hold anything; Plotly reads a few tags in its texts. */
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  const number = (value, decimals = null) => {
    if (value === null || value === undefined) return "";
    if (decimals !== null) return value.toFixed(decimals);
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-4) return value.toExponential(2);
    return size >= 1000 ? value.toFixed(0) : value.toPrecision(3);
  };
  /* The same without ending zeros, for marks on an axis. */
  const brief = (value) => (Math.abs(value) < 1e-4 ? String(value) : String(Number(value.toPrecision(3))));

  const fill = (select, entries, chosen) => {
    select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
    if (chosen !== undefined) select.value = String(chosen);
  };

  const cell = (tag, text, kind) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (kind) made.className = kind;
    if (tag === "th") made.scope = "row";
    return made;
  };

  /* Colours: a hue is kept, its lightness moved until it stands out from the paper by 3 : 1. */
  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, two) => {
    const [high, low] = [luminance(one), luminance(two)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const readable = (hex) => {
    const paper = channels(variable("--paper"));
    const target = luminance(paper) > 0.5 ? 0 : 255;
    let rgb = channels(hex);
    if (target === 255 && Math.max(...rgb) < 32) rgb = channels(variable("--ink")); /* black on dark is white */
    for (let step = 0; step < 30 && contrast(rgb, paper) < 3; step += 1) {
      rgb = rgb.map((value) => value + (target - value) * 0.08);
    }
    return `rgb(${rgb.map(Math.round).join(",")})`;
  };
  const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const colour = (mode) => readable(data.palette[mode] || data.otherColour);
  const faded = (rgb, share) => rgb.replace("rgb(", "rgba(").replace(")", `,${share})`);

  /* Charts: drawn when they come into view, and again when theme or size change. */
  const charts = new Map();
  const narrow = () => innerWidth < 640;
  const axis = (more) => ({
    gridcolor: variable("--line"), linecolor: variable("--edge"), zeroline: false, ticks: "outside", ticklen: 4,
    tickcolor: variable("--edge"), automargin: true, ...more,
    title: { text: plain(more.title || ""), standoff: 10, font: { size: 13 } },
  });
  const layout = (more) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: ["#0072B2"],
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: variable("--ink") },
    margin: { l: 56, r: 16, t: 14, b: 48 }, hovermode: "closest",
    hoverlabel: { bgcolor: variable("--panel"), bordercolor: variable("--edge"), font: { color: variable("--ink") }, align: "left" },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom", font: { size: 12 } }, ...more,
  });
  /* Five megabytes that the text above the first chart need not wait for. */
  const load = () => {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = element("plotly").textContent;
    document.head.append(script);
  };
  const draw = (id) => {
    load();
    const chart = charts.get(id);
    chart.seen = true;
    const { traces, layout: wanted } = chart.make();
    Plotly.react(element(id), traces, layout(wanted), { displayModeBar: false, responsive: true });
  };
  const redraw = (id) => { if (charts.get(id)?.seen) draw(id); };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      draw(entry.target.id);
    }
  }, { rootMargin: "300px" });
  const chart = (id, make) => {
    charts.set(id, { make, seen: false });
    watcher.observe(element(id));
    const tools = document.createElement("div");
    tools.className = "save";
    for (const format of ["svg", "png"]) {
      const button = cell("button", format.toUpperCase());
      button.type = "button";
      button.setAttribute("aria-label", `Save this chart as ${format.toUpperCase()}`);
      button.addEventListener("click", () => {
        draw(id);
        Plotly.downloadImage(element(id), { format, filename: `${document.title.split(" ")[0]}_${id}`, scale: 2 });
      });
      tools.append(button);
    }
    element(id).before(tools);
  };
  /* Theme: the system's until the reader chooses. */
  const button = element("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    for (const swatch of document.querySelectorAll(".swatch")) swatch.style.background = colour(swatch.dataset.mode);
    for (const id of charts.keys()) redraw(id);
  };
  try { root.dataset.theme = localStorage.getItem("theme") || ""; } catch { /* a file may have no storage */ }
  if (!root.dataset.theme) delete root.dataset.theme;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* then it lasts as long as the page */ }
    show();
  });
  dark.addEventListener("change", show);

  /* Paper is white, and what was not yet seen is printed as well. */
  let chosenTheme = "";
  addEventListener("beforeprint", () => {
    chosenTheme = root.dataset.theme ?? "";
    root.dataset.theme = "light";
    for (const id of charts.keys()) draw(id);
  });
  addEventListener("afterprint", () => {
    if (chosenTheme) root.dataset.theme = chosenTheme;
    else delete root.dataset.theme;
    show();
  });

  const copy = element("copy");
  if (copy) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      const text = element("command").textContent;
      try {
        await navigator.clipboard.writeText(text);
      } catch { /* not every browser lets a file do so */
        getSelection().selectAllChildren(element("command"));
        document.execCommand("copy");
      }
      copy.textContent = "Copied";
      element("copied").textContent = "The command is in the clipboard.";
      setTimeout(() => { copy.textContent = "Copy"; element("copied").textContent = ""; }, 2000);
    });
  }
  show();

  /* The run that the reader has chosen, wherever that was done. */
  const listeners = [];
  const choose = (run) => { for (const listener of listeners) listener(run); };
  const onChoice = (listener) => listeners.push(listener);

  const name = (run) => (run.arm ? `${run.arm}: ${run.label}` : run.label);
  return { data, element, plain, number, brief, fill, cell, colour, faded, variable, axis, chart, redraw, narrow, choose, onChoice, name };
})();
