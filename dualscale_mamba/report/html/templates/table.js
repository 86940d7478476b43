"use strict";
/* The comparison table: sorted by its heads, filtered by words, a row chooses a run. */
(() => {
  const { element, choose, onChoice, data, cell } = report;
  const table = element("jobs");
  const body = table.tBodies[0];
  const original = [...body.rows];

  const valueOf = (row, column, kind) => {
    const found = row.cells[column];
    const text = found?.dataset.sort ?? found?.textContent.trim() ?? "";
    if (kind !== "number") return text;
    return text === "" || found.colSpan > 1 ? null : Number(text);
  };
  const compare = (one, two, sign) => {
    if (one === null || two === null) return (one === null) - (two === null); /* what is missing comes last */
    if (typeof one === "number") return sign * (one - two);
    return sign * one.localeCompare(two, "en", { numeric: true });
  };
  const sort = (head) => {
    const state = head.getAttribute("aria-sort");
    const next = state === "ascending" ? "descending" : state === "descending" ? null : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    const rows = [...original];
    if (next) {
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const key = new Map(rows.map((row) => [row, valueOf(row, head.cellIndex, head.dataset.kind)]));
      rows.sort((one, two) => compare(key.get(one), key.get(two), sign));
    }
    body.append(...rows);
  };
  for (const head of table.tHead.rows[0].cells) {
    if (!head.dataset.kind) continue;
    const button = document.createElement("button");
    button.type = "button";
    const label = head.querySelector(".head");
    button.append(...(label ? [label] : [...head.childNodes]));
    head.prepend(button);
    button.addEventListener("click", () => sort(head));
  }

  const filter = element("filter");
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of original) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    element("filtered").textContent = words.length ? `${shown} of ${original.length} runs` : "";
  };
  filter.addEventListener("input", apply);

  for (const row of original) {
    const run = row.dataset.run;
    if (!(run in data.layers.runs)) continue;
    const label = row.querySelector(".label");
    const button = cell("button", label.textContent, "label");
    button.type = "button";
    button.title = "Show its layers below";
    label.replaceWith(button);
    row.addEventListener("click", (event) => { if (!event.target.closest("a")) choose(run); });
  }
  onChoice((run) => {
    for (const row of original) {
      if (row.dataset.run === run) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    element("chosen").textContent = `${data.runs[run].label} is chosen; its layers are below.`;
  });
})();
