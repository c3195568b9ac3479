"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("modules");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const narrow = window.innerWidth < 600;
  const views = {};
  const text = (row, column) => row.cells[column].textContent.trim();

  rows.forEach((row, place) => { row.place = place; });

  // Charts: data come as columns, to be short.
  const table_of = (columns) => {
    const names = Object.keys(columns);
    return (columns[names[0]] || []).map((_, place) =>
      Object.fromEntries(names.map((name) => [name, columns[name][place]])));
  };

  const tip = document.getElementById("tip");
  const tell = (_, event, item, value) => {
    const id = item && item.datum ? item.datum.id : undefined;
    tip.hidden = value == null || value === "" || id === undefined;
    if (tip.hidden) return;
    const row = rows[id];
    const told = [2, 3, 5].filter((at) => text(row, at) !== "-")
      .map((at) => `${titles[at]} ${text(row, at)}`);
    const others = item.datum.modules > 1 ? `\n(the highest of ${item.datum.modules} modules)` : "";
    tip.textContent = `${text(row, 1)}\nplace ${text(row, 0)}, ${told.join(", ")}, ${text(row, 8)}${others}`;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8))}px`;
    const below = event.clientY + 18;
    const above = event.clientY - tip.offsetHeight - 12;
    tip.style.top = `${below + tip.offsetHeight > window.innerHeight ? above : below}px`;
  };

  const draw = async ({ name, spec, columns }) => {
    spec.datasets = { [name]: table_of(columns) };
    if (narrow) spec.config.axis.labelLimit = 110;
    if (window.innerWidth < 900) { // legends do not wrap by themselves
      const columns = narrow ? (name === "memory" ? 1 : 2) : 3;
      Object.assign(spec.config.legend, { columns, titleOrient: "top" });
    }
    const found = await vegaEmbed(`#chart-${name}`, spec, {
      renderer: "svg", actions: false, ast: true, defaultStyle: false, tooltip: tell,
    });
    views[name] = found.view;
    found.view.addEventListener("click", (_, item) => {
      if (item && item.datum && item.datum.id !== undefined) show(item.datum.id, true);
    });
  };

  // One module.
  const choice = document.getElementById("module");
  const set_shown = (name, id) => views[name] && views[name].signal("shown", id).runAsync();
  const describe = (row) => {
    const list = document.getElementById("one-facts");
    list.replaceChildren(...titles.map((title, at) => [title, text(row, at)])
      .filter(([, value], at) => at !== 1 && value && value !== "-")
      .map(([title, value]) => {
        const pair = document.createElement("div");
        for (const [tag, said] of [["dt", title], ["dd", value]]) {
          pair.appendChild(document.createElement(tag)).textContent = said;
        }
        return pair;
      }));
  };
  const show = (id, look) => {
    const { ranks, tail, hls } = page.curves;
    if (!choice || !(id in tail)) return;
    const named = { tail: tail[id], hls: hls[id] };
    const points = Object.entries(named).flatMap(([curve, values]) =>
      values.map((value, at) => ({ rank: ranks[at], value, curve })));
    if (views.tail) views.tail.data("tail", points).runAsync();
    choice.value = String(id);
    document.getElementById("one-name").textContent = text(rows[id], 1);
    describe(rows[id]);
    body.querySelector("[aria-current]")?.removeAttribute("aria-current");
    rows[id].setAttribute("aria-current", "true");
    set_shown("heat", id);
    set_shown("bars", id);
    if (look) document.getElementById("one").scrollIntoView({ block: "nearest" });
  };
  if (choice) {
    choice.replaceChildren(...page.curves.tail.map((_, id) =>
      new Option(`${text(rows[id], 0)} ${text(rows[id], 1)}`, id)));
    choice.addEventListener("change", () => show(Number(choice.value), false));
    body.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) show(button.closest("tr").place, true);
    });
  }

  // Sorting: what has no number goes last; equal cells keep the order of the score.
  const number = (cell) => {
    const values = cell.replaceAll(",", "").split(" x ").map(parseFloat);
    return values.some(Number.isNaN) ? null : values.reduce((product, value) => product * value, 1);
  };
  const collator = new Intl.Collator("en", { numeric: true });
  const in_text = (a, b) => (a && b ? collator.compare(a, b) : (b ? 1 : 0) - (a ? 1 : 0));
  const sort = (header) => {
    const at = header.cellIndex;
    const numeric = header.dataset.sort === "number";
    // Places and names rise at first, numbers fall.
    const first = numeric && at > 0 ? "descending" : "ascending";
    const now = header.getAttribute("aria-sort") || "";
    const falling = now ? now === "ascending" : first === "descending";
    const sign = falling ? -1 : 1;
    const keyed = rows.map((row) => [numeric ? number(text(row, at)) : text(row, at), row]);
    const none = (key) => key === null || key === "";
    keyed.sort(([a, x], [b, y]) => {
      if (none(a) || none(b)) return none(a) - none(b) || x.place - y.place;
      return sign * (numeric ? a - b : in_text(a, b)) || x.place - y.place;
    });
    for (const cell of header.parentElement.cells) cell.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const sorted = document.createDocumentFragment();
    for (const [, row] of keyed) sorted.append(row);
    body.append(sorted);
  };
  table.tHead.addEventListener("click", (event) => {
    const header = event.target.closest("button")?.closest("th");
    if (header) sort(header);
  });

  // Filter.
  const filter = document.getElementById("filter");
  const count = document.getElementById("count");
  const sift = () => {
    const wanted = filter.value.trim().toLowerCase();
    let kept = 0;
    for (const row of rows) {
      const found = !wanted || row.textContent.toLowerCase().includes(wanted);
      row.hidden = !found;
      kept += found;
    }
    const shown = table.classList.contains("cut") && kept > 500 ? ", the first 500 shown" : "";
    count.textContent = `${kept.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows${shown}`;
  };
  const all = document.getElementById("all");
  if (all) {
    all.addEventListener("click", () => {
      const cut = table.classList.toggle("cut");
      all.setAttribute("aria-pressed", String(!cut));
      sift();
    });
  }
  filter.addEventListener("input", sift);
  sift();

  Promise.all(page.charts.map(draw)).then(() => {
    show(0, false);
    document.documentElement.dataset.ready = "true";
  });
})();
