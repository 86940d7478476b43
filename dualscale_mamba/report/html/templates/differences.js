"use strict";
/* All settings in which two runs differ. */
(() => {
  const { data, element, fill, cell } = report;
  const table = element("two");
  if (!table) return;
  const { common, own } = data.settings;
  const valueOf = (run, key) => own[run][key] ?? common[key];
  const entries = data.runs.map((run, place) => [place, report.name(run)]);
  fill(element("first-run"), entries, 0);
  fill(element("second-run"), entries, Math.min(1, entries.length - 1));
  const show = () => {
    const [one, two] = ["first-run", "second-run"].map((id) => Number(element(id).value));
    const keys = Object.keys(common).filter((key) => valueOf(one, key) !== valueOf(two, key));
    const heads = table.tHead.rows[0].cells;
    heads[1].textContent = data.runs[one].label;
    heads[2].textContent = data.runs[two].label;
    table.tBodies[0].replaceChildren(...keys.map((key) => {
      const row = document.createElement("tr");
      row.append(cell("th", key, "word"), cell("td", valueOf(one, key), "word"), cell("td", valueOf(two, key), "word"));
      return row;
    }));
    element("two-count").textContent = keys.length > 1 ? `${keys.length} settings differ` : keys.length ? "one setting differs" : "no setting differs";
  };
  for (const id of ["first-run", "second-run"]) element(id).addEventListener("change", show);
  show();
})();
