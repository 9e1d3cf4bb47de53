// A table that sorts by any of its columns; a second press turns the order round.
sections.table = (body, data) => {
  const said = { better: "significantly better", worse: "significantly worse", same: "not told apart" };
  const cell = (entry, column, place) => {
    const node = make(place ? "td" : "th", { scope: place ? null : "row", class: column.number ? "number" : null, title: entry.note });
    node.append(entry.text);
    if (entry.mark) node.append(make("span", { class: `mark ${entry.mark}`, "aria-hidden": "true" }, data.marks[entry.mark]), hidden(`, ${said[entry.mark]}`));
    if (entry.note) node.append(hidden(` (${entry.note})`));
    return node;
  };
  const rows = data.rows.map((entries) => ({ entries, node: make("tr", {}, ...entries.map((entry, place) => cell(entry, data.columns[place], place))) }));
  const inside = make("tbody", {}, ...rows.map((row) => row.node));
  const status = make("p", { class: "heard", role: "status" });
  const heads = data.columns.map((column, place) => make("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": "none" },
    make("button", { type: "button", onclick: () => sort(place) }, column.name, make("span", { class: "arrow", "aria-hidden": "true" }))));
  const value = (row, place) => row.entries[place].value ?? (data.columns[place].number ? null : row.entries[place].text);
  const sort = (place) => {
    const before = heads[place].getAttribute("aria-sort");
    const first = data.columns[place].number ? "descending" : "ascending";
    const now = before === "none" ? first : before === "ascending" ? "descending" : "ascending";
    heads.forEach((head, at) => head.setAttribute("aria-sort", at === place ? now : "none"));
    const sign = now === "ascending" ? 1 : -1;
    const order = [...rows].sort((one, other) => {
      const [a, b] = [value(one, place), value(other, place)];
      if (a === null || b === null) return (a === null) - (b === null);  // what has no value stands last, whatever the order
      return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
    });
    inside.replaceChildren(...order.map((row) => row.node));
    status.textContent = `Sorted by ${data.columns[place].name}, ${now}`;
  };
  const groups = [];
  for (const column of data.columns) {
    const last = groups[groups.length - 1];
    if (last && last.name === column.group) last.span += 1; else groups.push({ name: column.group, span: 1 });
  }
  const above = groups.some((group) => group.name) ? make("tr", { class: "groups" }, ...groups.map((group) =>
    group.name ? make("th", { scope: "colgroup", colspan: group.span }, group.name) : make("td", { colspan: group.span }))) : null;
  body.append(make("div", { class: "card scroll", tabindex: "0", role: "region", "aria-label": `${body.parentElement.querySelector("h2").textContent}: table, scrolls sideways` },
    make("table", { class: "sorts" }, make("thead", {}, above, make("tr", {}, ...heads)), inside)), status);
  const below = notes(data.notes);
  if (below) body.append(below);
};
