// Curves, drawn by the plotly that the page carries. It is unpacked when a reader comes near.
const plotly = {
  ready: null,
  load() {
    this.ready = this.ready || (async () => {
      const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (one) => one.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const script = document.createElement("script");
      script.textContent = await new Response(stream).text();
      document.head.append(script);
      return window.Plotly;
    })();
    return this.ready;
  },
};
// Plotly reads some tags in its texts: these are to be text.
const plain = (text) => String(text).replace(/[&<>]/g, (one) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[one]);
const faded = (color, share) => {
  const hex = color.startsWith("#") ? color : "#888888";
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${red},${green},${blue},${share})`;
};

sections.curves = (body, data) => {
  const shown = new Set(data.curves.map((_, place) => place));
  const charts = data.charts.map((chart) => new Chart(chart, data, shown));
  const redraw = () => charts.forEach((chart) => chart.draw());
  const chips = data.curves.map((curve, place) => make("button", {
    type: "button", class: "chip", "aria-pressed": "true",
    onclick: (event) => {
      if (shown.has(place)) shown.delete(place); else shown.add(place);
      event.currentTarget.setAttribute("aria-pressed", String(shown.has(place)));
      redraw();
    },
  }, swatch(curve.color, curve.marker), curve.name));
  body.append(make("div", { class: "chips", role: "group", "aria-label": "Strategies shown" }, ...chips));
  body.append(make("div", { class: data.charts.length > 1 ? "charts" : "charts one" }, ...charts.map((chart) => chart.node)));
  const said = notes(data.notes);
  if (said) body.append(said);
  document.addEventListener("colours", redraw);
  const near = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    near.disconnect();
    plotly.load().then(redraw);
  }, { rootMargin: "600px" });
  near.observe(body);
};

class Chart {
  constructor(chart, data, shown) {
    Object.assign(this, { chart, data, shown, x: chart.x[0], y: chart.y[0] });
    this.plot = make("div", { class: "plot", role: "img" });
    this.numbers = make("div", { class: "scroll" });
    const table = make("details", { class: "numbers", ontoggle: () => this.fill(table) }, make("summary", {}, "The numbers as a table"), this.numbers);
    this.table = table;
    this.node = make("figure", { class: "card chart" },
      make("figcaption", {}, make("h3", {}, chart.title), make("div", { class: "choices" }, this.choice("y", "Show"), this.choice("x", "against"))),
      this.plot, table);
  }
  choice(axis, label) {
    const names = this.chart[axis];
    if (names.length < 2) return null;
    return make("label", {}, `${label} `, make("select", {
      onchange: (event) => { this[axis] = event.target.value; this.draw(); },
    }, ...names.map((name) => make("option", { value: name }, this.data.figures[name].name))));
  }
  curves() {
    return this.data.curves.filter((curve, place) => this.shown.has(place) && (curve.values[this.y] || []).some((value) => value !== null));
  }
  draw() {
    const [x, y] = [this.data.figures[this.x], this.data.figures[this.y]];
    this.plot.setAttribute("aria-label", this.said(x, y));
    if (this.table.open) this.fill(this.table);
    if (!window.Plotly) return;
    const text = css("--text");
    const grid = css("--line");
    const all = this.curves().flatMap((curve) => (this.across(curve, x) ? [] : curve.values[this.x] || [])).filter((value) => value !== null);
    const [least, most] = [Math.min(...all), Math.max(...all)];
    const log = !x.percent && least > 0 && most / least > 8;
    const traces = this.curves().flatMap((curve) => this.traces(curve, x, y, [least, most], text));
    if (this.chart.front && x.better && y.better) traces.push(...this.front(x, y, text));
    const lines = this.y === this.chart.y[0] ? this.chart.lines : [];
    const layout = {
      autosize: true, height: 380, margin: { l: 56, r: 14, t: 10, b: 48 }, showlegend: false, hovermode: x.reversed ? "x unified" : "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: css("--font"), size: 12, color: text },
      hoverlabel: { bgcolor: css("--card"), bordercolor: grid, font: { color: text, family: css("--font"), size: 12 }, align: "left" },
      xaxis: {
        title: { text: plain(x.label), standoff: 10 }, type: log ? "log" : "linear", autorange: x.reversed ? "reversed" : true, gridcolor: grid, zeroline: false,
        tickformat: x.percent ? ".0%" : "", ...(log ? this.ticks(all) : {}), linecolor: grid, fixedrange: matchMedia("(pointer: coarse)").matches,
      },
      yaxis: { title: { text: plain(y.label), standoff: 8 }, gridcolor: grid, zeroline: false, tickformat: y.percent ? ".0%" : "", linecolor: grid, automargin: true, fixedrange: matchMedia("(pointer: coarse)").matches },
      shapes: lines.map(([, value]) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: { color: text, width: 1, dash: "dot" } })),
      annotations: lines.map(([label, value]) => ({ xref: "paper", x: 0, y: value, text: plain(label), showarrow: false, xanchor: "left", yanchor: "bottom", font: { size: 11, color: css("--soft") } })),
    };
    window.Plotly.react(this.plot, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
  }
  across(curve, x) { return curve.single && x.reversed; }
  ticks(values) {
    const found = [...new Set(values)].sort((one, other) => one - other);
    const kept = [];
    for (const value of found) if (!kept.length || value / kept[kept.length - 1] > 1.3) kept.push(value);
    return { tickvals: kept, ticktext: kept.map(number) };
  }
  traces(curve, x, y, [least, most], text) {
    const color = curve.color === "#000000" ? text : curve.color;
    const values = curve.values[this.y];
    const bounds = [curve.low[this.y], curve.high[this.y]];
    const interval = (place) => (bounds[0] && bounds[0][place] !== null && bounds[0][place] !== undefined ? ` [${written(y, bounds[0][place])} – ${written(y, bounds[1][place])}]` : "");
    const mark = { color, symbol: (MARKS[curve.marker] || MARKS.o)[0], size: 8 };
    const hover = { hovertemplate: "%{customdata}<extra></extra>" };
    if (this.across(curve, x)) {
      const said = plain(`${curve.name}: ${written(y, values[0])}${interval(0)}`);
      return [
        ...(bounds[0] ? [this.band([least, most], [bounds[0][0], bounds[0][0]], [bounds[1][0], bounds[1][0]], faded(color, 0.08))] : []),
        { type: "scatter", mode: "lines", x: [least, most], y: [values[0], values[0]], line: { color, width: 1.5, dash: "dash" }, customdata: [said, said], name: plain(curve.name), ...hover },
      ];
    }
    const places = values.map((_, place) => place).filter((place) => values[place] !== null && (curve.values[this.x] || [])[place] !== null && curve.values[this.x]);
    const at = (list) => places.map((place) => list[place]);
    const said = places.map((place) => plain(`${curve.name}${x.reversed ? "" : `, ${curve.points[place]}`}: ${written(y, values[place])}${interval(place)}${x.reversed ? "" : ` at ${written(x, curve.values[this.x][place])}`}`));
    return [
      ...(bounds[0] && places.length > 1 && x.reversed ? [this.band(at(curve.values[this.x]), at(bounds[0]), at(bounds[1]), faded(color, 0.1))] : []),
      {
        type: "scatter", mode: x.reversed ? "lines+markers" : "markers", x: at(curve.values[this.x]), y: at(values), line: { color, width: 2 }, marker: mark, customdata: said,
        name: plain(curve.name), ...hover,
        ...(bounds[0] && !x.reversed ? { error_y: { type: "data", symmetric: false, array: places.map((place) => bounds[1][place] - values[place]), arrayminus: places.map((place) => values[place] - bounds[0][place]), thickness: 0.8, width: 0, color: faded(color, 0.5) } } : {}),
      },
    ];
  }
  band(x, low, high, fillcolor) {
    return { type: "scatter", mode: "lines", x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()], fill: "toself", fillcolor, line: { width: 0 }, hoverinfo: "skip" };
  }
  points() {
    return this.curves().flatMap((curve) => curve.values[this.y].map((value, place) => ({ x: (curve.values[this.x] || [])[place], y: value, name: `${curve.name}${curve.single ? "" : `, ${curve.points[place]}`}` })))
      .filter((point) => Number.isFinite(point.x) && Number.isFinite(point.y));
  }
  beating(x, y) {
    const [less, more] = [x.better === "low" ? 1 : -1, y.better === "high" ? 1 : -1];
    const order = this.points().sort((one, other) => less * (one.x - other.x) || more * (other.y - one.y));
    const found = [];
    for (const point of order) if (!found.length || more * (point.y - found[found.length - 1].y) > 1e-12) found.push(point);
    return found;
  }
  front(x, y, text) {
    const found = this.beating(x, y);
    return [{
      type: "scatter", mode: "lines+markers", x: found.map((one) => one.x), y: found.map((one) => one.y), line: { color: text, width: 1.2, shape: "hv" },
      marker: { symbol: "circle-open", size: 14, color: text, line: { width: 1.4 } }, hoverinfo: "skip", name: "Pareto front",
    }];
  }
  said(x, y) {
    const best = this.curves().map((curve) => {
      const values = curve.values[this.y].filter((value) => value !== null);
      return `${curve.name} ${written(y, Math.min(...values))} to ${written(y, Math.max(...values))}`;
    });
    const front = this.chart.front && x.better && y.better ? ` Pareto front: ${this.beating(x, y).map((one) => one.name).join("; ")}.` : "";
    return `${y.label} against ${x.label}: ${best.join(", ")}.${front} The numbers stand in the table below the chart.`;
  }
  fill(table) {
    if (!table.open) return;
    const [x, y] = [this.data.figures[this.x], this.data.figures[this.y]];
    const rows = this.curves().flatMap((curve) => curve.values[this.y].map((value, place) => [
      curve.name, curve.single ? "" : curve.points[place], written(x, (curve.values[this.x] || [])[place]), written(y, value),
      (curve.low[this.y] || [])[place] === undefined ? "" : `${written(y, curve.low[this.y][place])} – ${written(y, curve.high[this.y][place])}`,
    ]));
    const head = ["strategy", "budget", x.name, y.name, "95 % interval"].map((name) => make("th", { scope: "col" }, name));
    const lines = rows.map((row) => make("tr", {}, ...row.map((text, place) => make(place ? "td" : "th", { scope: place ? null : "row" }, text))));
    this.numbers.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines)));
  }
}
