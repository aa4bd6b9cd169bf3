// The item browser of the evaluation report. All data is in #items; all text goes in as text, never as markup.
const source = document.getElementById("items");
if (source) {
  const packed = Uint8Array.from(atob(source.textContent), (letter) => letter.charCodeAt(0));
  new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).json().then(browse);
}

function browse(data) {
  const root = document.querySelector("[data-browser]");
  const PER_PAGE = 10;
  const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  const state = { set: "", outcome: "", change: "", kind: "", video: "", id: "", words: "", page: 0, at: -1, frame: 0 };
  let found = [];
  let timer = null;

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
      else if (name === "style") Object.assign(node.style, value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };
  const candidate = data.models[data.models.length - 1];
  const before = data.models.length > 1 ? data.models[data.models.length - 2] : null;
  const answerOf = (item, model, frames = "ordered") => (item.answers[model] || {})[frames];
  const outcome = (item, model, frames) => (answerOf(item, model, frames) || {}).o || "";
  const change = (item) => {
    const [now, then] = [outcome(item, candidate), before ? outcome(item, before) : ""];
    if (!now || !then || (now === "right") === (then === "right")) return "";
    return now === "right" ? "gained" : "lost";
  };
  const onlyInOrder = (item) => outcome(item, candidate) === "right" && answerOf(item, candidate, "shuffled")
    && outcome(item, candidate, "shuffled") !== "right";
  const MARK = { right: "✓", wrong: "✗", failed: "!" };
  const seconds = (x) => `${Number(x).toFixed(1)} s`;

  // -- controls
  const choose = (key, label, choices) => make("select", { "aria-label": label, "data-choose": key, on: {
    change: (event) => { state[key] = event.target.value; state.page = 0; select(); } } },
  make("option", { value: "" }, `${label}: all`), ...choices.map(([value, text]) => make("option", { value }, text)));
  const kinds = [...new Set(data.items.map((item) => item.kind))].sort();
  const count = (test) => data.items.reduce((sum, item) => sum + (test(item) ? 1 : 0), 0);
  const outcomes = [
    ["right", `${candidate} right`], ["wrong", `${candidate} wrong`], ["failed", `${candidate} failed`],
    ["order", `${candidate} right only with frames in order`],
  ].map(([value, text]) => [value, text, count((item) => matches(item, { outcome: value }))]).filter((c) => c[2]);
  const changes = before
    ? [["lost", `no longer right after ${before}`], ["gained", `now right after ${before}`]]
      .map(([value, text]) => [value, text, count((item) => change(item) === value)]).filter((c) => c[2])
    : [];
  const counted = (choices) => choices.map(([value, text, n]) => [value, `${text} (${n})`]);
  const controls = make("div", { class: "controls" });
  if (data.sets.length > 1) controls.append(choose("set", "benchmark", data.sets.map((set) => [set.key, set.title])));
  controls.append(choose("outcome", "outcome", counted(outcomes)));
  if (changes.length) controls.append(choose("change", "change", counted(changes)));
  if (kinds.length > 1) controls.append(choose("kind", "question", kinds.map((kind) => [kind, kind])));
  controls.append(make("input", { type: "search", placeholder: "words in question, answer or id", "aria-label": "search",
    on: { input: (event) => { state.words = event.target.value.toLowerCase(); state.page = 0; select(); } } }));
  const chip = make("button", { type: "button", hidden: true, on: {
    click: () => { state.video = ""; state.id = ""; state.page = 0; select(); } } });
  const shown = make("p", { class: "count", "aria-live": "polite" });
  const list = make("div", { class: "list" });
  const pageText = make("span");
  const turn = (step) => make("button", { type: "button", "data-turn": step, on: { click: () => {
    state.page += step; draw(); } } }, step < 0 ? "‹ previous page" : "next page ›");
  const [back, forth] = [turn(-1), turn(1)];
  const detail = make("div", { class: "detail", "aria-live": "polite" });
  controls.append(chip);
  root.replaceChildren(controls, shown, list, make("div", { class: "pager" }, back, pageText, forth), detail);

  function matches(item, wanted) {
    if (wanted.set && item.set !== wanted.set) return false;
    if (wanted.kind && item.kind !== wanted.kind) return false;
    if (wanted.video && item.video !== wanted.video) return false;
    if (wanted.id && item.id !== wanted.id) return false;
    if (wanted.change && change(item) !== wanted.change) return false;
    if (wanted.outcome === "order") { if (!onlyInOrder(item)) return false; }
    else if (wanted.outcome && outcome(item, candidate) !== wanted.outcome) return false;
    if (!wanted.words) return true;
    item.text ??= [item.id, item.question, item.truth, item.name,
      ...data.models.map((model) => (answerOf(item, model) || {}).a || "")].join("\n").toLowerCase();
    return item.text.includes(wanted.words);
  }

  function select() {
    found = data.items.filter((item) => matches(item, state));
    state.at = found.length ? 0 : -1;
    chip.hidden = !state.video && !state.id;
    const first = found.length ? found[0].name : state.video;
    chip.textContent = state.id ? `item ${state.id} ✕` : `video ${first} ✕`;
    draw();
    open(state.at);
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    shown.textContent = `${found.length.toLocaleString("en")} of ${data.items.length.toLocaleString("en")} items`;
    pageText.textContent = `page ${state.page + 1} of ${pages}`;
    back.disabled = state.page === 0;
    forth.disabled = state.page === pages - 1;
    const start = state.page * PER_PAGE;
    list.replaceChildren(...found.slice(start, start + PER_PAGE).map((item, offset) => make("button", {
      type: "button", "data-entry": item.id, "aria-current": String(start + offset === state.at),
      on: { click: () => open(start + offset) },
    },
    make("span", { class: "what" }, item.question || item.id),
    make("span", { class: "marks" }, ...data.models.map((model) => make("span", {
      class: outcome(item, model), title: `${model}: ${outcome(item, model) || "not asked"}`,
    }, MARK[outcome(item, model)] || "·"))),
    make("small", {}, `${item.kind} · ${item.id}`))));
  }

  // -- one item
  function open(at) {
    clearInterval(timer);
    timer = null;
    state.at = at;
    const item = found[at];
    if (!item) { detail.replaceChildren(make("p", { class: "soft" }, "Nothing matches.")); return; }
    const page = Math.floor(at / PER_PAGE);
    if (page !== state.page) { state.page = page; draw(); }
    for (const [offset, node] of [...list.children].entries()) {
      node.setAttribute("aria-current", String(page * PER_PAGE + offset === at));
    }
    const step = (by, text) => make("button", { type: "button", "data-step": by, disabled: !found[at + by], on: {
      click: () => open(at + by) } }, text);
    const media = data.media[item.media];
    detail.replaceChildren(make("article", { class: "card", "data-open": item.id },
      make("div", { class: "walk" }, step(-1, "‹ previous"), make("small", {}, `${at + 1} of ${found.length}`),
        step(1, "next ›")),
      make("p", { class: "soft" }, make("span", { class: "chip" }, item.kind), " ", make("small", {}, `${item.name} · ${item.id} · `),
        make("button", { type: "button", "data-video": item.video, on: {
          click: () => { state.video = item.video; state.page = 0; select(); } } }, "same video")),
      make("p", { class: "question" }, item.question),
      item.options.length ? make("ul", { class: "options" }, ...item.options.map((text, i) => make("li", {
        class: LETTERS[i] === item.truth ? "truth" : null }, `${LETTERS[i]}. ${text}`))) : null,
      ...picture(item, media),
      timeline(item, media),
      make("p", { class: "truth" }, "Truth: ", make("b", {}, item.truth)),
      ...data.models.slice().reverse().map((model, i) => answers(item, model, i === 0)).filter(Boolean)));
  }

  function picture(item, media) {
    if (!media) return [make("p", { class: "soft" }, item.noframes || data.noframes)];
    const image = make("img", { alt: "frame", src: media.frames[0] });
    const slider = make("input", { type: "range", min: 0, max: media.frames.length - 1, value: 0, "aria-label": "frame",
      on: { input: (event) => show(Number(event.target.value)) } });
    const clock = make("output");
    const frames = media.frames.map((frame, i) => make("figure", {}, make("img", { src: frame, alt: `frame ${i + 1}`,
      loading: "lazy", on: { click: () => show(i) } }), make("figcaption", {}, seconds(media.times[i]))));
    const play = make("button", { type: "button", "data-play": true, "aria-label": "play", on: { click: () => {
      if (timer) { clearInterval(timer); timer = null; } else {
        timer = setInterval(() => show((state.frame + 1) % media.frames.length), 250);
      }
      play.textContent = timer ? "❚❚" : "▶";
    } } }, "▶");
    function show(i) {
      state.frame = i;
      image.src = media.frames[i];
      slider.value = i;
      clock.textContent = seconds(media.times[i]);
      frames.forEach((figure, j) => figure.classList.toggle("now", j === i));
    }
    item.show = (time) => {
      const distance = media.times.map((t) => Math.abs(t - time));
      show(distance.indexOf(Math.min(...distance)));
    };
    show(0);
    const stage = media.frames.length > 1
      ? [make("div", { class: "stage" }, image, make("div", { class: "play" }, play, slider, clock)),
        make("div", { class: "strip" }, ...frames)]
      : [make("div", { class: "stage" }, image)];
    if (item.order) {
      stage.push(make("details", {}, make("summary", {}, "shuffled, as it was shown"), make("div", { class: "strip" },
        ...item.order.map((i) => make("figure", {}, make("img", { src: media.frames[i], alt: "", loading: "lazy" }))))));
    }
    return stage;
  }

  function timeline(item, media) {
    const tracks = [["truth", item.evidence, "good"],
      ...data.models.slice().reverse().map((model) => [model, (answerOf(item, model) || {}).s || [], "accent"])]
      .filter(([, spans]) => spans.length);
    const ends = tracks.flatMap(([, spans]) => spans.map((span) => span[1]));
    const duration = (media && media.duration) || item.duration || Math.max(...ends, 0);
    if (!tracks.length || !(duration > 0)) return null;
    const at = (x) => 100 * Math.min(Math.max(x / duration, 0), 1);
    return make("div", { class: "timeline" },
      ...tracks.flatMap(([label, spans, tone]) => [make("div", { class: "track-label" }, label),
        make("div", { class: "track" }, ...spans.map(([start, end, caption]) => make("button", { type: "button",
          class: tone, title: `${seconds(start)} – ${seconds(end)}  ${caption}`,
          style: { left: `${at(start)}%`, width: `${at(end) - at(start)}%` },
          on: { click: () => item.show && item.show(start) } }, caption)))]),
      make("div", { class: "track-label" }, "seconds"),
      make("div", { class: "axis" }, ...[0, 1, 2, 3, 4].map((i) => make("span", {},
        String(Math.round(duration * i * 25) / 100)))));
  }

  function answers(item, model, isOpen) {
    const asked = Object.entries(item.answers[model] || {});
    if (!asked.length) return null;
    const ordered = answerOf(item, model) || {};
    const tones = { right: "good", wrong: "bad", failed: "warn" };
    return make("div", { class: "answers" }, make("b", {}, model), " ",
      ...asked.flatMap(([frames, one]) => [make("span", { class: `chip ${tones[one.o]}`,
        title: `${one.o}, score ${one.g}` },
      `${data.frames[frames] || frames}: ${one.a ?? (one.o === "failed" ? "failed" : "no answer")} ${MARK[one.o]}`), " "]),
      ordered.e ? make("p", { class: "warn" }, ordered.e) : null,
      ordered.r ? make("details", { open: isOpen }, make("summary", {},
        ordered.cut ? `response (${ordered.cut})` : "response"), response(ordered.r)) : null);
  }

  function response(text) {
    const parts = text.split(/(<\/?(?:time|caption|think|answer)>)/i);
    return make("pre", { class: "response" }, ...parts.filter(Boolean).map((part, i) => (
      /^<\/?(?:time|caption|think|answer)>$/i.test(part) ? make("span", { class: "tag" }, part) : part)));
  }

  root.addEventListener("keydown", (event) => {
    if (["INPUT", "SELECT"].includes(event.target.tagName)) return;
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by && found[state.at + by]) { open(state.at + by); event.preventDefault(); }
  });
  for (const button of document.querySelectorAll("button[data-show]")) {
    button.addEventListener("click", () => {
      Object.assign(state, { set: "", outcome: "", change: "", kind: "", video: "", id: "", words: "", page: 0 },
        JSON.parse(button.dataset.show));
      for (const control of controls.querySelectorAll("[data-choose]")) control.value = state[control.dataset.choose];
      controls.querySelector("input").value = "";
      select();
      root.scrollIntoView();
    });
  }
  select();
  open(Math.max(0, found.findIndex((item) => item.media)));
}
