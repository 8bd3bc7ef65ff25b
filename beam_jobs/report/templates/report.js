"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const patients = facts.patients;
  const names = facts.recipe.modalities;
  const slices = facts.recipe.shape[2];
  const coloured = !facts.target || ["binary", "multiclass"].includes(facts.target.task);
  const $ = (id) => document.getElementById(id);

  // The index: filters and order.
  const cards = [...document.querySelectorAll(".card")];
  const chosen = () => ({
    text: $("find").value.trim().toLowerCase(),
    label: $("by-label").value,
    fold: $("by-fold").value,
    has: $("by-has").value,
  });
  const has = (label, want) =>
    Array.isArray(label) ? label[Number(want)] === 1 : String(label) === want;
  // Of findings their number.
  const worth = (label) =>
    label === null ? -Infinity
      : Array.isArray(label) ? label.filter((one) => one === 1).length : label;
  const fits = (patient, want) =>
    patient.id.toLowerCase().includes(want.text) &&
    (want.label === "" || has(patient.label, want.label)) &&
    (want.fold === "" || String(patient.fold) === want.fold) &&
    (want.has === "" ||
      (want.has === "all" ? !patient.present.includes(0) : !patient.present[Number(want.has)]));
  const last = Number.MAX_SAFE_INTEGER;
  const inFold = ({ fold }) => (fold === "test" ? last - 1 : (fold ?? last));
  const orders = {
    id: () => 0,
    label: (a, b) => worth(b.label) - worth(a.label) || 0,
    fold: (a, b) => inFold(a) - inFold(b),
    missing: (a, b) => a.present.filter(Boolean).length - b.present.filter(Boolean).length,
  };
  let shown = cards.map((_, place) => place);
  function filter() {
    const want = chosen();
    const order = orders[$("order").value];
    shown = patients.map((_, place) => place).filter((place) => fits(patients[place], want));
    shown.sort((a, b) => order(patients[a], patients[b]) || a - b);
    const visible = new Set(shown);
    cards.forEach((card, place) => { card.hidden = !visible.has(place); });
    $("cards").append(...shown.map((place) => cards[place]));
    $("found").textContent = `${shown.length} of ${patients.length} patients`;
  }
  $("controls").hidden = false;
  $("controls").addEventListener("input", filter);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  filter();

  // The viewer: a patient's sprite is decoded when it is shown; the last few are kept.
  const viewer = $("viewer");
  const slider = $("slice");
  const figures = [...viewer.querySelectorAll("figure")];
  const decoded = new Map();
  const state = { place: -1, slice: 0, image: null, timer: 0 };

  function sprite(place) {
    if (!decoded.has(place)) {
      const image = new Image();
      image.src = "data:image/jpeg;base64," + $(`sprite-${patients[place].sprite.at}`).textContent;
      decoded.set(place, image.decode().then(() => image));
      if (decoded.size > 6) decoded.delete(decoded.keys().next().value);
    }
    return decoded.get(place);
  }

  function draw() {
    const patient = patients[state.place];
    const { tile, across, first, count, step } = patient.sprite;
    const tileOf = Math.floor((state.slice - first) / step);
    let channel = -1;
    figures.forEach((figure, index) => {
      const canvas = figure.querySelector("canvas");
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, canvas.width, canvas.height);
      if (!patient.present[index]) return;
      channel += 1;
      if (!state.image || tileOf < 0 || tileOf >= count) return;
      const number = channel * count + tileOf;
      context.drawImage(
        state.image, (number % across) * tile[0], Math.floor(number / across) * tile[1],
        tile[0], tile[1], 0, 0, tile[0], tile[1]);
    });
    slider.value = state.slice;
    const place = patient.first_mm + state.slice * patient.spacing[2];
    $("where").textContent = `slice ${state.slice + 1} of ${slices}, ${place.toFixed(0).replace("-", "−")} mm`;
    slider.setAttribute("aria-valuetext", $("where").textContent);
  }

  function go(slice) {
    state.slice = Math.max(0, Math.min(slices - 1, slice));
    draw();
  }

  function play(on) {
    clearInterval(state.timer);
    state.timer = 0;
    if (on) {
      const { first, count, step } = patients[state.place].sprite;
      state.timer = setInterval(() => {
        const next = state.slice + step;
        go(next < first || next >= first + count * step ? first : next);
      }, 110);
    }
    $("play").textContent = on ? "Pause" : "Play";
    $("play").setAttribute("aria-pressed", String(on));
  }

  async function open(place) {
    const patient = patients[place];
    const { tile, box } = patient.sprite;
    play(false);
    state.place = place;
    state.image = null;
    $("who").textContent = patient.id;
    $("what").className = coloured ? `label l${patient.label && Math.min(patient.label, 3)}` : "label";
    $("what").textContent = patient.label === null ? "no label" : patient.said ?? `label ${patient.label}`;
    if ($("known")) $("known").textContent = patient.known;
    $("fold").textContent = patient.fold === null ? "no fold" : patient.fold === "test" ? "test patient" : `fold ${patient.fold}`;
    const ratio = (box[3] * patient.spacing[1]) / (box[2] * patient.spacing[0]);
    viewer.style.setProperty("--ratio", ratio.toFixed(4));
    figures.forEach((figure, index) => {
      const canvas = figure.querySelector("canvas");
      [canvas.width, canvas.height] = tile;
      figure.querySelector(".none").hidden = Boolean(patient.present[index]);
      ["left", "right", "up", "down"].forEach((side, at) => {
        const end = figure.querySelector(`.${side}`);
        end.textContent = patient.ends[at];
        end.hidden = !patient.present[index];
      });
    });
    if (!viewer.open) { viewer.showModal(); slider.focus(); }
    go(patient.slice);
    const image = await sprite(place);
    if (state.place === place) { state.image = image; draw(); viewer.dataset.ready = String(place); }
  }

  function neighbour(step) {
    const at = shown.indexOf(state.place);
    const next = shown[(at + step + shown.length) % shown.length];
    if (next !== undefined) location.replace(hashOf(next));
  }

  const hashOf = (place) => `#patient/${encodeURIComponent(patients[place].id)}`;
  function follow() {
    if (!location.hash.startsWith("#patient/")) { if (viewer.open) viewer.close(); return; }
    let id = location.hash.slice(9);
    try { id = decodeURIComponent(id); } catch { return; }
    const place = patients.findIndex((patient) => patient.id === id);
    if (place >= 0) open(place);
  }
  addEventListener("hashchange", follow);
  viewer.addEventListener("close", () => {
    play(false);
    const card = cards[state.place];
    if (location.hash.startsWith("#patient/")) history.replaceState(null, "", "#patients");
    if (card) card.querySelector("a").focus();
  });
  $("close").addEventListener("click", () => viewer.close());
  $("before").addEventListener("click", () => neighbour(-1));
  $("after").addEventListener("click", () => neighbour(1));
  $("play").addEventListener("click", () => play(!state.timer));
  slider.addEventListener("input", () => go(Number(slider.value)));

  const keys = {
    ArrowRight: () => go(state.slice + 1), ArrowUp: () => go(state.slice + 1),
    ArrowLeft: () => go(state.slice - 1), ArrowDown: () => go(state.slice - 1),
    Home: () => go(0), End: () => go(slices - 1),
    PageUp: () => neighbour(-1), PageDown: () => neighbour(1),
    " ": () => play(!state.timer),
  };
  viewer.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.tagName === "BUTTON") return;
    event.preventDefault();
    act();
  });

  const channels = $("channels");
  let drag = null;
  channels.addEventListener("pointerdown", (event) => {
    play(false);
    drag = { y: event.clientY, x: event.clientX, slice: state.slice };
    channels.setPointerCapture(event.pointerId);
  });
  channels.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const moved = drag.y - event.clientY + event.clientX - drag.x;
    go(drag.slice + Math.round((moved / Math.min(500, channels.clientHeight)) * slices));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    channels.addEventListener(end, () => { drag = null; });
  }
  let wheeled = 0;
  channels.addEventListener("wheel", (event) => {
    event.preventDefault();
    wheeled -= event.deltaY;
    if (Math.abs(wheeled) < 30) return;
    go(state.slice + Math.sign(wheeled));
    wheeled = 0;
  }, { passive: false });
  follow();
})();
