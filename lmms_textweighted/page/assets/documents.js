// The document browser. The index says what every point answered; a document's own data is read when it is shown.
const CODE = { right: 1, unknown: 2, changed: 4, absent: 8 };
const UNITS = {
  keep_tokens: (budget) => `${number(budget)} tokens`, keep_ratio: (budget) => `${percent(budget, 0)} of the tokens`,
  equivalent_tokens: (budget) => `${number(budget)} equivalent tokens`, flops_ratio: (budget) => `${percent(budget, 0)} of the FLOPs`,
};
const asked = (point) => (point.budget === null ? "no budget" : (UNITS[point.unit] || number)(point.budget));
const FILTERS = {
  all: ["All documents", () => true],
  broken: ["Broken: right unpruned, wrong here", (here, whole) => isRight(whole) && isWrong(here)],
  fixed: ["Fixed: wrong unpruned, right here", (here, whole) => isWrong(whole) && isRight(here)],
  changed: ["Another answer than unpruned", (here) => !(here & CODE.absent) && (here & CODE.changed) > 0],
  wrong: ["Wrong here", (here) => isWrong(here)],
};
const isRight = (code) => (code & (CODE.right | CODE.absent)) === CODE.right;
const isWrong = (code) => (code & (CODE.right | CODE.unknown | CODE.absent)) === 0;
const verdict = (here, whole) => {
  if (here & CODE.absent) return ["absent", "–", "not run"];
  if (isRight(whole) && isWrong(here)) return ["broken", "✗", "broken by pruning"];
  if (isWrong(whole) && isRight(here)) return ["fixed", "✓", "fixed by pruning"];
  if (isRight(here)) return ["right", "✓", here & CODE.changed ? "right, in other words" : "right, as unpruned"];
  if (isWrong(here)) return ["wrong", "✗", here & CODE.changed ? "wrong, as unpruned, with another answer" : "wrong, as unpruned"];
  return here & CODE.changed ? ["changed", "≠", "another answer"] : ["same", "=", "the same answer"];
};

sections.documents = (body, data) => new Browser(body, data);

class Browser {
  constructor(body, data) {
    Object.assign(this, { data, id: body.parentElement.id, current: 0, mode: "kept", stage: null, filter: "all", cache: new Map() });
    this.series = [];  // the points of one strategy after one layer with one seed, smallest budget first
    data.points.forEach((point, place) => {
      const key = JSON.stringify([point.strategy, point.layer, point.seed]);
      let found = this.series.find((one) => one.key === key);
      if (!found) this.series.push(found = { key, ...point, places: [] });
      found.places.unshift(place);
    });
    this.lower = data.documents.map((entry) => entry.question.toLowerCase());
    this.whole = data.points.findIndex((point) => point.strategy === "none");
    this.strategies = [...new Set(data.points.map((point) => point.strategy))].filter((name) => name !== "none");
    if (!this.strategies.length) this.strategies = [...new Set(data.points.map((point) => point.strategy))];
    this.one = this.series.find((one) => one.strategy === this.strategies[0]);
    this.at = this.nearest(64);
    this.build(body);
    this.list();
    this.show(0);
    document.addEventListener("colours", () => this.draw());
    document.addEventListener("keydown", (event) => this.key(event, body));
  }
  get place() { return this.one.places[this.at]; }
  code(number, place) { return place < 0 ? CODE.unknown : Number(this.data.documents[number].codes[place]); }
  label(strategy) { return this.data.labels[strategy] || strategy; }
  nearest(budget) {
    const far = (place) => Math.abs((this.data.points[place].budget ?? Infinity) - budget);
    return this.one.places.reduce((best, place, at) => (far(place) < far(this.one.places[best]) ? at : best), 0);
  }

  build(body) {
    const option = ([value, [text]]) => make("option", { value }, text);
    this.filters = make("select", { onchange: (event) => { this.filter = event.target.value; this.list(true); } }, ...Object.entries(FILTERS).map(option));
    this.search = make("input", { type: "search", placeholder: "Words of the question", oninput: () => this.list(true) });
    this.count = make("p", { class: "count", role: "status" });
    this.items = this.data.documents.map((entry, place) => make("button", { type: "button", class: "item", tabindex: "-1", onclick: () => this.show(place) }));
    this.entries = this.items.map((item) => make("li", {}, item));
    this.names = make("ol", { class: "items", onkeydown: (event) => this.arrows(event) }, ...this.entries);
    const side = make("div", { class: "side card" },
      make("label", { class: "field" }, "Show", this.filters), make("label", { class: "field" }, "Find", this.search), this.count, this.names);

    this.before = make("button", { type: "button", class: "step", onclick: () => this.step(-1) }, "← Previous");
    this.after = make("button", { type: "button", class: "step", onclick: () => this.step(1) }, "Next →");
    this.heading = make("h3", { class: "question" });
    this.radios = make("div", { class: "radios" });
    this.layers = make("select", { onchange: (event) => this.choose(this.series.find((one) => one.key === event.target.value)) });
    this.layerField = make("label", { class: "field inline" }, "Layer and seed ", this.layers);
    this.slider = make("input", { type: "range", min: "0", step: "1", "aria-label": "Budget", oninput: () => { this.at = Number(this.slider.value); this.stage = null; this.refresh(); } });
    this.budget = make("output", { class: "budget" });
    this.modes = this.radioGroup("What is drawn", "mode", [["kept", "What stayed"], ["scores", "Scores"], ["picture", "Picture"]], (value) => { this.mode = value; this.draw(); });
    this.stages = make("select", { onchange: (event) => { this.stage = Number(event.target.value); this.draw(); } });
    this.stageField = make("label", { class: "field inline" }, "Removal ", this.stages);
    this.boards = make("div", { class: "boards" });
    this.bar = make("div", { class: "colours" }, make("span", { class: "least" }), make("span", { class: "ramp", "aria-hidden": "true" }), make("span", { class: "largest" }));
    this.pointed = make("p", { class: "pointed", role: "status" });
    this.answers = make("div", { class: "answers" });
    this.words = make("div", { class: "words" });
    this.strongest = make("p", { class: "soft" });
    this.map = make("div", { class: "scroll" });
    const main = make("div", { class: "shown" },
      make("div", { class: "steps" }, this.before, this.after),
      this.heading,
      make("fieldset", { class: "plainset" }, make("legend", {}, "Strategy"), this.radios),
      this.layerField,
      make("div", { class: "sliding" }, make("span", { class: "legend", "aria-hidden": "true" }, "Budget"), this.slider, this.budget),
      this.answers,
      make("div", { class: "two" },
        make("div", { class: "card seen" }, make("div", { class: "tools" }, this.modes, this.stageField), this.boards, this.bar, this.pointed),
        make("div", { class: "beside" },
          make("div", { class: "card" }, make("h4", {}, "The words and their weights"), this.words, this.strongest))),
      make("div", { class: "card" }, make("h4", {}, "This document everywhere"), this.map),
      make("p", { class: "soft keys" }, ...["n", " next, ", "p", " previous document; ", "s", " next strategy; ", "+", " ", "−", " budget; arrow keys move over the picture."].map((text, place) => (place % 2 ? text : make("kbd", {}, text)))));
    if (this.data.left_out) body.append(make("p", { class: "note" }, `${this.data.left_out} more documents have no place on this page.`));
    body.append(make("div", { class: "browser" }, side, main));
    const below = notes(this.data.notes);
    if (below) body.append(below);
    this.radios.append(...this.radio(`${this.id}-strategy`, this.strategies.map((name) => [name, this.label(name)]), this.one.strategy, (value) => {
      const same = this.series.filter((one) => one.strategy === value);
      this.choose(same.find((one) => one.layer === this.one.layer && one.seed === this.one.seed) || same[0]);
    }));
  }
  radio(name, choices, chosen, told) {
    return choices.map(([value, text]) => make("label", { class: "radio" },
      make("input", { type: "radio", name, value, checked: value === chosen, onchange: () => told(value) }), make("span", {}, text)));
  }
  radioGroup(legend, name, choices, told) {
    return make("fieldset", { class: "plainset" }, make("legend", { class: "heard" }, legend),
      make("div", { class: "radios small" }, ...this.radio(`${this.id}-${name}`, choices, choices[0][0], told)));
  }

  // The list: what the filter lets through under the strategy and budget that are chosen.
  list(moves = false) {
    const words = this.search.value.trim().toLowerCase();
    const [, passes] = FILTERS[this.filter];
    this.found = [];
    this.data.documents.forEach((entry, place) => {
      const [here, whole] = [this.code(place, this.place), this.code(place, this.whole)];
      const fits = passes(here, whole) && (!words || this.lower[place].includes(words));
      if (this.entries[place].hidden === fits) this.entries[place].hidden = !fits;
      if (fits) this.found.push(place);
      const [kind, glyph, said] = verdict(here, whole);
      const item = this.items[place];
      if (item.dataset.said !== said) {
        item.dataset.said = said;
        item.replaceChildren(make("span", { class: `glyph ${kind}`, "aria-hidden": "true" }, glyph), make("span", { class: "nr" }, String(place + 1)), make("span", { class: "asked" }, entry.question || entry.uid), hidden(`, ${said}`));
      }
    });
    this.count.textContent = `${this.found.length} of ${this.data.documents.length} documents`;
    if (moves && this.found.length && !this.found.includes(this.current)) this.show(this.found[0]);
    this.steps();
  }
  steps() {
    this.before.disabled = !(this.found[0] < this.current);
    this.after.disabled = !(this.found[this.found.length - 1] > this.current);
    const open = this.found.includes(this.current) ? this.current : this.found[0];
    if (this.open !== open) {
      if (this.open !== undefined) this.items[this.open].setAttribute("tabindex", "-1");
      if (open !== undefined) this.items[open].setAttribute("tabindex", "0");
      this.open = open;
    }
  }
  step(by) {
    const next = by > 0 ? this.found.find((place) => place > this.current) : [...this.found].reverse().find((place) => place < this.current);
    if (next !== undefined) this.show(next);
  }
  arrows(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.step(by);
    this.items[this.current].focus();
  }
  key(event, body) {
    const where = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|TEXTAREA)$/.test(where.tagName) || where.type === "search") return;
    if (where !== document.body && where.id !== "main" && !body.contains(where)) return;
    if (where === document.body || where.id === "main") {  // of several browsers the one that is seen
      const area = body.getBoundingClientRect();
      if (area.bottom < 80 || area.top > innerHeight - 80) return;
    }
    const acts = {
      n: () => this.step(1), p: () => this.step(-1), "+": () => this.slide(1), "=": () => this.slide(1), "-": () => this.slide(-1),
      s: () => {
        const inputs = [...this.radios.querySelectorAll("input")];
        inputs[(inputs.findIndex((one) => one.checked) + 1) % inputs.length].click();
      },
    };
    if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
  }
  slide(by) {
    this.at = Math.min(Math.max(this.at + by, 0), this.one.places.length - 1);
    this.stage = null;
    this.refresh();
  }
  choose(one) {
    const budget = this.data.points[this.place].budget;
    this.one = one;
    this.stage = null;
    this.at = this.nearest(budget ?? 64);
    this.refresh();
  }
  go(place) {
    this.one = this.series.find((one) => one.places.includes(place));
    this.at = this.one.places.indexOf(place);
    this.stage = null;
    for (const input of this.radios.querySelectorAll("input")) input.checked = input.value === this.one.strategy;
    this.refresh();
  }

  // One document.
  read(number) {
    if (!this.cache.has(number)) {
      if (this.cache.size > 20) this.cache.delete(this.cache.keys().next().value);
      const detail = read(`${this.id}-${number}`);
      detail.loaded = detail.images.map((canvases) => canvases.map((source) => {
        const image = new Image();
        image.onload = () => this.draw();
        image.src = source;
        return image;
      }));
      this.cache.set(number, detail);
    }
    return this.cache.get(number);
  }
  show(number) {
    this.items[this.current].removeAttribute("aria-current");
    this.current = number;
    this.detail = this.read(number);
    this.stage = null;
    const item = this.items[number];
    item.setAttribute("aria-current", "true");
    const [list, entry] = [this.names, this.entries[number]];
    if (entry.offsetTop < list.scrollTop || entry.offsetTop + entry.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = entry.offsetTop - list.clientHeight / 2;
    this.heading.textContent = this.detail.question;
    this.refresh();
    setTimeout(() => { if (number + 1 < this.items.length) this.read(number + 1); });
  }
  refresh() {
    this.list();
    const point = this.data.points[this.place];
    this.slider.max = String(this.one.places.length - 1);
    this.slider.value = String(this.at);
    this.slider.disabled = this.one.places.length < 2;
    this.slider.setAttribute("aria-valuetext", asked(point));
    this.budget.textContent = asked(point);
    const same = this.series.filter((one) => one.strategy === this.one.strategy);
    this.layerField.hidden = same.length < 2;
    this.layers.replaceChildren(...same.map((one) => make("option", { value: one.key, selected: one === this.one },
      [one.layer === null ? "layers of its own" : `layer ${one.layer}`, one.seed === null ? "" : `seed ${one.seed}`].filter(Boolean).join(", "))));
    this.tell();
    this.everywhere();
    this.draw();
  }
  tell() {
    const { detail } = this;
    const entry = detail.points[this.place];
    const whole = this.whole < 0 ? null : detail.points[this.whole];
    const [kind, glyph, said] = verdict(this.code(this.current, this.place), this.code(this.current, this.whole));
    const card = (title, text, more, extra = "") => make("div", { class: `answer ${extra}` }, make("h4", {}, title), make("p", { class: "text" }, text === null ? "–" : text.trim() || "(nothing)"), more && make("p", { class: "soft" }, more));
    const right = (one) => (one === null || one[1] === null ? "" : one[1] ? "✓ right" : "✗ wrong");
    const figures = entry && entry[4];
    const cost = figures ? [figures[0] === null ? "" : `${number(figures[0])} tokens in the last layer`, figures[1] === null ? "" : `${number(figures[1])} equivalent`, figures[2] === null ? "" : `${percent(figures[2], 0)} of the FLOPs`].filter(Boolean).join(" · ") : "";
    const badge = make("p", { class: `badge ${kind}` }, make("span", { "aria-hidden": "true" }, `${glyph} `), said);
    const here = card(`${this.label(this.one.strategy)} answers`, entry ? detail.answers[entry[0]] : null, cost, "here");
    here.insertBefore(badge, here.children[2] || null);
    this.answers.replaceChildren(here, ...(whole ? [card("Unpruned", detail.answers[whole[0]], right(whole))] : []), ...(detail.target === null ? [] : [card("Right answer", detail.target, detail.choices.length ? `of ${detail.choices.join(", ")}` : "")]));
  }
  everywhere() {
    const budgets = [...new Set(this.series.filter((one) => one.strategy !== "none").flatMap((one) => one.places.map((place) => this.data.points[place].budget)))].filter((one) => one !== null).sort((a, b) => a - b);
    const unit = this.data.points.find((point) => point.budget !== null);
    const share = unit && /ratio/.test(unit.unit);
    const rows = this.series.filter((one) => one.strategy !== "none").map((one) => {
      const name = [this.label(one.strategy), one.layer !== null && this.series.filter((other) => other.strategy === one.strategy && other.seed === one.seed).length > 1 ? `layer ${one.layer}` : "", one.seed === null ? "" : `seed ${one.seed}`].filter(Boolean).join(", ");
      const cells = budgets.map((budget) => {
        const place = one.places.find((at) => this.data.points[at].budget === budget);
        if (place === undefined) return make("td", {});
        const [kind, glyph, said] = verdict(this.code(this.current, place), this.code(this.current, this.whole));
        return make("td", {}, make("button", { type: "button", tabindex: "-1", class: `glyph ${kind}`, "aria-current": place === this.place ? "true" : null, title: `${name}, ${asked(this.data.points[place])}: ${said}`, onclick: () => this.go(place) }, glyph, hidden(said)));
      });
      return make("tr", {}, make("th", { scope: "row" }, name), ...cells);
    });
    const head = make("tr", {}, make("td", {}), ...budgets.map((budget) => make("th", { scope: "col" }, share ? percent(budget, 0) : number(budget))));
    this.map.replaceChildren(make("table", { class: "map" }, make("thead", {}, head), make("tbody", {}, ...rows)));
  }

  draw() {
    const { detail } = this;
    if (!detail) return;
    const entry = detail.points[this.place];
    const pictures = (entry && entry[5]) || detail.pictures;
    const places = placesOf(pictures);
    const all = Array.from({ length: places.length }, () => true);
    const stages = entry ? entry[3].map((at) => detail.stages[at]) : [];
    const at = this.stage !== null && this.stage < stages.length ? this.stage : stages.length - 1;
    const stage = stages[at];
    const kept = stage ? bits(stage.kept, places.length) : all;
    const candidates = !stage ? all : "candidates" in stage ? bits(stage.candidates, places.length) : at ? bits(stages[at - 1].kept, places.length) : all;
    const scores = stage && "scores" in stage ? new Map() : null;
    let ends = [0, 0];
    if (scores) {
      const values = decoded(detail.numbers[stage.scores]);
      candidates.forEach((is, token) => { if (is) scores.set(token, values[scores.size]); });
      ends = [detail.numbers[stage.scores].least, detail.numbers[stage.scores].largest];
    }
    this.drawn = { places, kept, candidates, scores, stage };
    this.stageField.hidden = stages.length < 2;
    this.stages.replaceChildren(...stages.map((one, place) => make("option", { value: String(place), selected: place === at },
      `${one.layer < 0 ? "before the first layer" : `after layer ${one.layer}`}: ${bits(one.kept, places.length).filter(Boolean).length} stay`)));
    this.bar.hidden = this.mode !== "scores";
    this.bar.classList.toggle("none", !scores);
    this.bar.firstChild.textContent = scores ? `lowest score ${number(ends[0])}` : "This strategy gives no scores here.";
    this.bar.lastChild.textContent = scores ? `highest ${number(ends[1])}` : "";
    this.paint(pictures, places, { kept, scores, mode: this.mode, least: ends[0], largest: ends[1], some: Boolean(stage), sources: (stage && stage.sources) || {}, coarse: Boolean(entry && entry[5]) });
    this.weigh(stage);
    this.outer(places, kept);
  }
  paint(pictures, places, state) {
    const wanted = pictures.flatMap((picture, at) => picture.canvases.map((canvas, number) => ({ picture: at, canvas: number, ...canvas })));
    while (this.boards.children.length > wanted.length) { this.boards.lastChild.remove(); this.drawers.pop(); }
    this.drawers = this.drawers || [];
    while (this.drawers.length < wanted.length) {
      const board = new Board((token) => this.point(token));
      this.drawers.push(board);
      this.boards.append(board.node);
    }
    const several = pictures.length > 1;
    wanted.forEach((one, at) => {
      const tokens = places.map((place, token) => ({ ...place, token })).filter((place) => place.picture === one.picture && place.canvas === one.canvas);
      const image = ((this.detail.loaded[one.picture] || [])[one.canvas]) || null;
      const stay = tokens.filter(({ token }) => state.kept[token]).length;
      const name = [several ? `picture ${one.picture + 1}` : "", one.crops ? `cut into ${one.crops[0]} × ${one.crops[1]} crops` : wanted.length > (several ? pictures.length : 1) ? "the whole picture" : ""].filter(Boolean).join(", ");
      this.drawers[at].set({
        ...state, size: one.size, tokens, image: image && image.complete && image.naturalWidth ? image : null,
        caption: `${name ? `${name}: ` : ""}${stay} of ${tokens.length} patches stay${image ? "" : "; the picture itself is not here"}`,
        label: `${name || "The picture"} as the model saw it, ${one.size[0]} by ${one.size[1]} pixels. ${stay} of ${tokens.length} patches stay. ${this.where(tokens, state.kept)} Arrow keys move from patch to patch.`,
      });
    });
  }
  // In words where the kept patches lie: by thirds of the picture.
  where(tokens, kept) {
    const rows = Math.max(...tokens.map((one) => one.row), 0) + 1;
    const columns = Math.max(...tokens.map((one) => one.column), 0) + 1;
    const found = {};
    for (const one of tokens) {
      if (!kept[one.token]) continue;
      const name = `${["top", "middle", "bottom"][Math.floor((3 * one.row) / rows)]} ${["left", "centre", "right"][Math.floor((3 * one.column) / columns)]}`;
      found[name] = (found[name] || 0) + 1;
    }
    const most = Object.entries(found).sort((one, other) => other[1] - one[1]).slice(0, 3);
    return most.length ? `Most of them: ${most.map(([name, count]) => `${count} ${name}`).join(", ")}.` : "";
  }
  outer(places, kept) {
    const without = places.map((place, token) => token).filter((token) => places[token].canvas === null);
    this.without = without.length ? `${without.filter((token) => kept[token]).length} of ${without.length} tokens that are no patch stay. ` : "";
    this.point(null);
  }
  point(token) {
    if (token === null) { this.pointed.textContent = `${this.without}Point at a patch, or use the arrow keys on the picture, to read its score.`; return; }
    const { places, kept, scores, candidates, stage } = this.drawn;
    const place = places[token];
    const merged = stage && stage.sources && stage.sources[token];
    const score = scores && scores.get(token);
    this.pointed.textContent = [
      `Patch in row ${place.row + 1}, column ${place.column + 1}: ${kept[token] ? "stays" : candidates[token] ? "leaves" : "left before"}`,
      score === undefined || score === null ? "" : `score ${number(score)}`, merged ? `made of ${merged.length} tokens` : "",
    ].filter(Boolean).join(", ");
  }
  weigh(stage) {
    const { detail } = this;
    const weights = stage && "weights" in stage ? decoded(detail.numbers[stage.weights]) : [];
    const text = weights.length ? detail.texts[stage.text] : [];
    const by = new Map(text.map((piece, place) => [piece, weights[place]]));
    let first = Math.min(detail.after, ...(text.length ? [text[0]] : [detail.after]));
    while (first < detail.pieces.length && !detail.pieces[first].trim()) first += 1;
    const most = Math.max(...weights, 0);
    this.words.replaceChildren(...detail.pieces.slice(first).map((piece, place) => {
      const weight = by.get(first + place);
      if (weight === undefined) return make("span", { class: "unread" }, piece);
      const share = most > 0 ? Math.max(weight, 0) / most : 0;
      const node = make("span", { class: "word", title: `weight ${number(weight)}` }, piece);
      node.style.setProperty("--share", share.toFixed(3));
      return node;
    }));
    const top = [...by].sort((one, other) => other[1] - one[1]).slice(0, 5).filter(([, weight]) => weight > 0);
    const even = weights.length && Math.max(...weights) === Math.min(...weights);
    this.strongest.textContent = !stage ? "Nothing leaves here, and so no word decides." : !weights.length ? "This strategy reads no words."
      : weights.length === 1 ? `It reads one token alone: “${detail.pieces[text[0]].trim() || "⏎"}”.` : even ? `All ${weights.length} tokens count alike.` : `Strongest: ${top.map(([piece, weight]) => `“${detail.pieces[piece].trim() || "⏎"}” ${number(weight)}`).join(", ")}`;
  }
}
