// The page of `harvest serve`: asks as one types, shows moments, plays them from their second.
// What is looked for lives in the address after the #, which no server sees.

const $ = (selector, within = document) => within.querySelector(selector);
const PAUSE_MS = 180; // of typing, after which a search is sent
const HOVER_MS = 150;
const PAGE = 48; // moments, and as many again for "more"
const MOST = 192;
const PER_VIDEO = 5; // moments of one video
const SETTLED_MS = 1500; // after which the next search is a step in the browser's history
const FILTERS = ["without", "path", "after", "before", "min_duration_s", "max_duration_s", "false_accept"];
const USUAL = "0.05"; // of false_accept
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const text = $("#text"), form = $("#search"), list = $("#results"), status = $("#status"), answerBox = $("#answer");
const player = $("#player"), film = $("#player video"), filters = $("#filters");

let isLeaving = false; // the player is closed and its step in the history is not gone yet
let like = null; // what is searched with in place of words: { moment | picture, name, image }
let k = PAGE;
let shown = []; // the moments of the list: { id, video, path, start_s, end_s, offset_s, hit, card }
let about = { examples: [], warning: null, shows_paths: false };
let curves = new Map(); // scores along videos, by id
let scale = [0, 1]; // of the curves, the same for all that are shown
let stopped = new AbortController(); // of the search under way
let at = -1; // of the player, in `shown`
let isSettled = false; // whether what is shown was looked at

// ---- talking to the service

class Failure extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function ask(address, { body, picture, signal } = {}) {
  const options = { signal, credentials: "same-origin" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });
  if (picture) Object.assign(options, { method: "POST", body: picture });
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "The service does not answer. It may have been stopped.");
  }
  if (response.status === 204) return null;
  const value = await response.json().catch(() => ({ error: `The service answered with ${response.status}.` }));
  if (response.status === 401 && !address.endsWith("/session")) openDoor();
  if (!response.ok) throw new Failure(response.status, value.error);
  return value;
}

async function enter(token) {
  await ask("api/session", { body: { token } });
}

function openDoor() {
  if (!$("#door").open) $("#door").showModal();
}

$("#door form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await enter($("#door [type=password]").value);
    $("#door [type=password]").value = $("#door .note").textContent = "";
    $("#door").close();
    readAddress();
  } catch (error) {
    $("#door .note").textContent = error.message;
  }
});

// ---- what is looked for

function asked() {
  if (like) return like.moment ? { moment: like.moment } : { picture: like.picture };
  return text.value.trim() ? { text: text.value.trim() } : null;
}

function chosen() {
  const values = Object.fromEntries(FILTERS.map((name) => [name, form.elements[name].value.trim()]));
  const where = {};
  for (const name of ["path", "after"]) if (values[name]) where[name] = values[name];
  if (values.before) where.before = new Date(Date.parse(values.before) + 864e5).toISOString().slice(0, 10); // the day too
  for (const name of ["min_duration_s", "max_duration_s"]) if (values[name]) where[name] = Number(values[name]);
  return { where, without: values.without ? [values.without] : [], false_accept: Number(values.false_accept) };
}

function address(play = null) {
  const state = new URLSearchParams();
  if (text.value.trim()) state.set("text", text.value.trim());
  for (const kind of ["moment", "picture"]) if (like?.[kind]) state.set(kind, like[kind]);
  for (const name of FILTERS) {
    const value = form.elements[name].value.trim();
    if (value && !(name === "false_accept" && value === USUAL)) state.set(name, value);
  }
  if (play) state.set("play", play);
  return state.size ? `#${state}` : location.pathname;
}

function writeAddress({ isStep = false, play = null } = {}) {
  const number = FILTERS.filter((name) => form.elements[name].value.trim() && form.elements[name].value !== USUAL).length;
  $("#num-filters").hidden = !number;
  $("#num-filters").textContent = number;
  if (isLeaving) return; // written when the player's step is gone
  if (address(play) !== (location.hash || location.pathname)) history[isStep && !history.state?.isPlayer ? "pushState" : "replaceState"](null, "", address(play));
  document.title = text.value.trim() && !like ? `${text.value.trim()} – Harvest` : "Harvest";
  isSettled = false;
}

async function readAddress() {
  const state = new URLSearchParams(location.hash.slice(1));
  if (state.has("token")) { // as the command prints it; it does not stay in the address or the history
    history.replaceState(null, "", location.pathname);
    await enter(state.get("token")).catch(openDoor);
  }
  text.value = state.get("text") ?? "";
  for (const name of FILTERS) form.elements[name].value = state.get(name) ?? (name === "false_accept" ? USUAL : "");
  if (FILTERS.some((name) => state.has(name))) showFilters(true);
  const picture = state.get("picture");
  setLike(state.has("moment") ? { moment: state.get("moment"), name: "a moment" }
    : picture ? { picture, name: "your picture", image: `api/pictures/${encodeURIComponent(picture)}` } : null);
  k = PAGE;
  writeAddress({ play: state.get("play") });
  await search();
  if (state.has("play")) await playById(state.get("play"));
}

// Back and forward: the player opens and closes, or another search is shown.
async function onHistory() {
  if (isLeaving) { // the player's step is gone; what was asked for meanwhile is a step of its own
    isLeaving = false;
    if (player.open) history.replaceState({ isPlayer: true }, "", address(shown[at].id ?? shown[at].video));
    else writeAddress({ isStep: true });
    return;
  }
  const state = new URLSearchParams(location.hash.slice(1));
  const play = state.get("play");
  state.delete("play");
  const before = new URLSearchParams(address().startsWith("#") ? address().slice(1) : "");
  if (player.open && !play) player.close();
  if (String(state) !== String(before)) await readAddress();
  else if (play) await playById(play);
}

async function playById(id) {
  let place = shown.findIndex((moment) => (moment.id ?? moment.video) === id);
  if (place < 0) {
    if (!id.includes(".")) return;
    try {
      shown.push(await ask(`api/moments/${encodeURIComponent(id)}`));
      place = shown.length - 1;
    } catch (error) {
      return showFailure(error);
    }
  }
  play(place, undefined, { isNew: false });
}

function setLike(what) {
  if (like?.image?.startsWith("blob:") && like.image !== what?.image) URL.revokeObjectURL(like.image);
  like = what;
  $("#like").hidden = !like;
  if (!like) return;
  $("#like span").textContent = `like ${like.name}`;
  $("#like img").hidden = !like.image;
  if (like.image) $("#like img").src = like.image;
}

function moreLike(moment) {
  text.value = "";
  setLike({
    moment: moment.id,
    name: `${moment.path}, ${clock(moment.start_s)} to ${clock(moment.end_s)}`,
    image: thumbnail(moment.video, middle(moment)),
  });
  k = PAGE;
  player.close();
  writeAddress({ isStep: true });
  scrollTo({ top: 0 });
  search().then(() => { if (document.activeElement === document.body) $(".media", list)?.focus(); });
}

async function withPicture(file) {
  if (!file) return;
  if (!["image/jpeg", "image/png", "image/webp"].includes(file.type)) {
    return showFailure(new Failure(400, "Search with a picture: a JPEG, PNG or WebP file."));
  }
  status.textContent = "Sending the picture…";
  try {
    const { picture } = await ask("api/pictures", { picture: file });
    text.value = "";
    setLike({ picture, name: file.name || "your picture", image: URL.createObjectURL(file) });
    k = PAGE;
    writeAddress({ isStep: true });
    await search();
  } catch (error) {
    showFailure(error);
  }
}

// ---- searching

async function search() {
  stopped.abort();
  stopped = new AbortController();
  const { signal } = stopped;
  const query = asked();
  document.body.classList.add("is-busy");
  try {
    await (query ? showMoments(query, signal) : showLibrary(signal));
  } catch (error) {
    if (error.name !== "AbortError") showFailure(error);
  } finally {
    if (!signal.aborted) document.body.classList.remove("is-busy");
    setTimeout(() => { if (!signal.aborted) isSettled = true; }, SETTLED_MS);
  }
}

async function showMoments(query, signal) {
  const answer = await ask("api/search", { body: { ...query, ...chosen(), k, per_video: PER_VIDEO }, signal });
  if (like?.moment && like.name === "a moment" && !like.image) describeLike(answer.query);
  const notes = answer.notes.filter((note) => !note.startsWith("scores")); // the words on the cards, or none, say so
  $("#broken").hidden = $("#examples").hidden = true;
  const count = answer.hits.length;
  const groups = byVideo(answer.hits.map((hit) => ({ ...hit.moment, hit })));
  if (answer.is_there) {
    hideAnswer();
    status.textContent = [`${many(count, "moment")} in ${many(groups.length, "video")}`, ...notes].join(" · ");
  } else {
    status.textContent = "";
    const reason = notes.length ? sentence(notes.join("; ")) : count ? "What comes nearest matches no better than any sentence would." : "";
    showAnswer("Nothing like this here", reason, count ? "Show what comes nearest" : "", () => { list.hidden = false; });
  }
  list.hidden = !answer.is_there;
  fill(groups);
  $("#more").hidden = !answer.is_there || count < k || k >= MOST;
  await showCurves(query, signal);
}

// Moments by their videos, in the order of each video's best moment.
function byVideo(moments) {
  const groups = new Map();
  for (const moment of moments) groups.set(moment.video, [...(groups.get(moment.video) ?? []), moment]);
  return [...groups.values()];
}

async function showCurves(query, signal) {
  curves = new Map();
  const videos = [...new Set(shown.map((moment) => moment.video))];
  for (let first = 0; first < videos.length; first += 50) {
    const found = await ask("api/timelines", { body: { ...query, videos: videos.slice(first, first + 50) }, signal });
    for (const scores of found) curves.set(scores.video.id, scores);
  }
  const all = [...curves.values()].flatMap((scores) => scores.scores);
  scale = [all.reduce((a, b) => Math.min(a, b), 1), all.reduce((a, b) => Math.max(a, b), -1)];
  for (const [best] of byVideo(shown.filter((moment) => moment.card))) drawCurve($(".line", best.card), best);
  if (player.open) drawCurve($(".line", player), shown[at]);
}

async function showLibrary(signal) {
  const path = form.elements.path.value.trim();
  const address = `api/videos?limit=${k}${path ? `&path=${encodeURIComponent(path)}` : ""}`;
  const [stats, { total, videos }] = await Promise.all([ask("api/stats", { signal }), ask(address, { signal })]);
  curves = new Map();
  hideAnswer();
  list.hidden = false;
  status.textContent = `${many(stats.videos, "video")}, ${span(stats.duration_s)}, ${many(stats.moments, "moment")}` +
    (path ? ` · ${many(total, "path")} with “${path}”` : "");
  fill(videos.map((video) => [{ id: null, video: video.id, path: video.path, start_s: 0, end_s: video.duration_s, offset_s: video.offset_s, whole: video }]));
  $("#more").hidden = videos.length >= total || k >= MOST;
  if (!stats.videos) showAnswer("This library is empty", "Index a folder: harvest index FOLDER");
  $("#examples").hidden = !about.examples.length || !stats.videos || Boolean(path);
  $("#broken").hidden = !stats.broken;
  $("#broken summary").textContent = `${many(stats.broken, "file")} could not be read`;
}

$("#broken").addEventListener("toggle", async () => {
  if (!$("#broken").open) return;
  const rows = await ask("api/broken").catch(() => []);
  $("#broken ul").replaceChildren(...rows.slice(0, 200).map((row) => make("li", {}, `${row.path}: ${row.reason}`)));
});

function describeLike(name) {
  const [video, number] = like.moment.split(".");
  ask("api/timelines", { body: { moment: like.moment, videos: [video] } }).then(([scores]) => {
    const start_s = scores.start_s[number], end_s = scores.end_s[number];
    setLike({ moment: `${video}.${number}`, name, image: thumbnail(video, middle({ start_s, end_s })) });
  }).catch(() => {});
}

function showAnswer(title, reason = "", button = "", act = null, isError = false) {
  answerBox.hidden = false;
  answerBox.classList.toggle("is-error", isError);
  $("h2", answerBox).textContent = title;
  $("p", answerBox).textContent = reason;
  const press = $("button", answerBox);
  press.hidden = !button;
  press.textContent = button;
  press.onclick = () => { press.hidden = true; act(); };
}

function hideAnswer() {
  answerBox.hidden = true;
}

function showFailure(error) {
  if (error.status === 401) return;
  console.info(error.message);
  status.textContent = "";
  list.hidden = true;
  $("#more").hidden = true;
  showAnswer("This did not work", sentence(error.message), "Try again", search, true);
}

// ---- the list

function fill(groups) {
  stopPreview();
  shown = groups.flat();
  list.replaceChildren(...groups.map(card));
}

const WORDS = { good: "Good match", possible: "Possible match", unlikely: "Unlikely" };
const stretch = (moment) => `${clock(moment.start_s)} – ${clock(moment.end_s)}`;

function card(group) {
  const [moment, ...others] = group;
  const when = moment.id ? stretch(moment) : clock(moment.end_s);
  const media = make("button", { type: "button", className: "media", ariaLabel: `Play ${moment.path}, ${when}` },
    make("img", { src: thumbnail(moment.video, middle(moment)), alt: "", loading: "lazy", decoding: "async" }),
    make("span", { className: "when" }, when));
  media.addEventListener("click", () => play(shown.indexOf(moment)));
  media.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && preview(moment, media));
  media.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && stopPreview(media));
  media.addEventListener("focus", () => media.matches(":focus-visible") && preview(moment, media));
  media.addEventListener("blur", () => stopPreview(media)); // never that of another card, on which a mouse button may be down

  const copies = moment.hit?.copies ?? [];
  const name = make("div", { className: "path", title: [moment.path, ...copies].join("\n") }, make("bdi", { dir: "ltr" }, moment.path));
  const about = make("div", { className: "about" }, name);
  if (copies.length) about.append(make("div", { className: "quiet" }, `also at ${many(copies.length, "other place")}`));
  const line = make("div", { className: "line" });
  line.addEventListener("click", (event) => play(shown.indexOf(moment), timeOf(event, line, moment)));
  const element = make("li", { className: "card" }, media);
  for (const one of group) one.card = element;
  if (moment.hit) {
    const { match, score, chance } = moment.hit;
    if (match) element.classList.add(`is-${match}`);
    const numbers = `score ${score.toFixed(3)}` +
      (chance == null ? "" : `; ${percent(chance)} of sentences about nothing here score as high`);
    const more = make("button", { type: "button", className: "like", ariaLabel: `More like this: ${moment.path}, ${when}` }, "More like this");
    more.addEventListener("click", () => moreLike(moment));
    about.append(make("div", { className: "foot" }, make("span", { className: "match", title: numbers }, WORDS[match] ?? ""), more));
    element.append(line, about);
  } else {
    about.append(make("div", { className: "quiet" }, moment.whole.damage ?? ""));
    element.append(about);
  }
  if (others.length) {
    const row = make("div", { className: "others" });
    for (const other of others.toSorted((a, b) => a.start_s - b.start_s)) {
      const button = make("button", { type: "button", ariaLabel: `Play ${other.path}, ${stretch(other)}`, title: WORDS[other.hit.match] ?? "" }, stretch(other));
      button.addEventListener("click", () => play(shown.indexOf(other)));
      row.append(button);
    }
    about.append(row);
  }
  return element;
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

function makeSvg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function drawCurve(place, moment) {
  const curve = curves.get(moment?.video);
  if (!curve || !curve.scores.length) return place.replaceChildren();
  const long = Math.max(curve.video.duration_s, 1e-3);
  const [low, high] = scale;
  const x = (time_s) => (1000 * Math.min(time_s / long, 1)).toFixed(1);
  const y = (score) => (94 - 86 * (score - low) / Math.max(high - low, 1e-6)).toFixed(1);
  const points = curve.scores.map((score, n) => `${x((curve.start_s[n] + curve.end_s[n]) / 2)},${y(score)}`);
  points.unshift(`0,${y(curve.scores[0])}`);
  points.push(`1000,${y(curve.scores.at(-1))}`);
  const svg = makeSvg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img", "aria-label": "Scores along the video" });
  svg.append(
    makeSvg("polygon", { class: "area", points: `0,100 ${points.join(" ")} 1000,100` }),
    makeSvg("polyline", { class: "curve", points: points.join(" ") }),
  );
  if (moment.id) svg.append(makeSvg("rect", { class: "hit", x: x(moment.start_s), y: 0, width: Math.max(x(moment.end_s) - x(moment.start_s), 6), height: 100 }));
  if (place.closest("#player")) svg.append(makeSvg("line", { class: "head", x1: 0, x2: 0, y1: 0, y2: 100 }));
  place.replaceChildren(svg);
  place.title = "Play from here";
}

function timeOf(event, line, moment) {
  const box = line.getBoundingClientRect();
  const long = curves.get(moment.video)?.video.duration_s ?? 0;
  return Math.max(0, Math.min(0.999, (event.clientX - box.left) / box.width)) * long;
}

// ---- playing

// Play a moment in a video element, from its second. What the browser refuses, or plays without a picture, comes as a
// preview made by the service. `onPreview` is told whether there is one, or why there is none.
function load(element, moment, { from_s = moment.start_s, onPreview = () => {} } = {}) {
  const file = `api/videos/${moment.video}/file`;
  element.shift_s = -moment.offset_s; // from the player's clock to the library's
  element.isPreview = false;
  const fall = async () => {
    if (!element.getAttribute("src")) return;
    const isLast = element.isPreview || !moment.id;
    const answer = await fetch(isLast ? element.src : file, { headers: { range: "bytes=0-0" } }).catch(() => null);
    if (!answer?.ok) return onPreview(false, (await answer?.json().catch(() => null))?.error ?? "The service does not answer.");
    if (isLast) return onPreview(false, "This browser does not play the file.");
    element.isPreview = true;
    element.shift_s = moment.start_s;
    element.src = `api/moments/${moment.id}/preview`;
    onPreview(true);
    element.play().catch(() => {});
  };
  element.onerror = fall;
  element.onloadedmetadata = () => { if (!element.videoWidth && !element.isPreview) fall(); };
  element.src = `${file}#t=${(from_s + moment.offset_s).toFixed(3)}`;
  element.play().catch(() => {}); // with sound only after a click; the controls are there
}

let previewed = null; // { video, media }
let waiting = 0;

function preview(moment, media) {
  stopPreview();
  if (calm.matches) return;
  waiting = setTimeout(() => {
    const video = make("video", { muted: true, playsInline: true, preload: "auto", tabIndex: -1 });
    const start_s = () => (video.isPreview ? 0 : moment.start_s + moment.offset_s);
    video.addEventListener("timeupdate", () => {
      if (!video.isPreview && video.currentTime >= moment.end_s + moment.offset_s) video.currentTime = start_s();
    });
    video.addEventListener("ended", () => { video.currentTime = start_s(); video.play().catch(() => {}); });
    load(video, moment, { onPreview: (isMade) => { if (!isMade) stopPreview(media); } });
    media.append(video);
    media.append($(".when", media)); // above the video
    previewed = { video, media };
  }, HOVER_MS);
}

function stopPreview(media = null) {
  if (media && previewed && previewed.media !== media) return;
  clearTimeout(waiting);
  if (previewed) unload(previewed.video), previewed.video.remove();
  previewed = null;
}

function unload(video) {
  video.pause();
  video.onerror = video.onloadedmetadata = null;
  video.removeAttribute("src");
  video.load();
}

function play(place, from_s, { isNew = true } = {}) {
  const moment = shown[place];
  if (!moment) return;
  stopPreview();
  at = place;
  $("#player-title").textContent = moment.id ? `${moment.path}, ${clock(moment.start_s)} to ${clock(moment.end_s)}` : moment.path;
  $(".note", player).textContent = "";
  drawCurve($(".line", player), moment);
  for (const name of ["like", "again", "link"]) $(`[data-do=${name}]`, player).hidden = !moment.id;
  $("[data-do=path]", player).hidden = !about.shows_paths;
  $("#download").href = `api/videos/${moment.video}/file?download=true`;
  $("[data-do=before]", player).disabled = place === 0;
  $("[data-do=next]", player).disabled = place === shown.length - 1;
  // Back closes the player: it is one step, whatever is played in it.
  if (isNew && !isLeaving) history[player.open ? "replaceState" : "pushState"]({ isPlayer: true }, "", address(moment.id ?? moment.video));
  if (!player.open) player.showModal();
  load(film, moment, {
    from_s: from_s ?? moment.start_s,
    onPreview: (isMade, problem) => {
      $(".note", player).textContent = isMade
        ? "This browser does not show the file's picture: a preview of the moment."
        : problem;
    },
  });
  film.focus();
}

function seek(time_s) {
  if (film.isPreview) { // shows one moment alone: the nearest to that time
    const curve = curves.get(shown[at].video);
    let n = 0;
    while (n + 1 < curve.start_s.length && curve.start_s[n + 1] <= time_s) n++;
    const moment = { ...shown[at], id: `${shown[at].video}.${n}`, start_s: curve.start_s[n], end_s: curve.end_s[n] };
    film.shift_s = moment.start_s;
    film.src = `api/moments/${moment.id}/preview`;
  } else {
    film.currentTime = time_s + shown[at].offset_s;
  }
  film.play().catch(() => {});
}

film.addEventListener("timeupdate", () => {
  const head = $(".head", player);
  const long = curves.get(shown[at]?.video)?.video.duration_s;
  if (!head || !long) return;
  const x = 1000 * Math.min((film.currentTime + film.shift_s) / long, 1);
  head.setAttribute("x1", x);
  head.setAttribute("x2", x);
});
$(".line", player).addEventListener("click", (event) => seek(timeOf(event, $(".line", player), shown[at])));
player.addEventListener("close", () => {
  unload(film);
  if (history.state?.isPlayer) isLeaving = true, history.back(); // arrives later, as a popstate
  else if (new URLSearchParams(location.hash.slice(1)).has("play")) history.replaceState(null, "", address());
  $(".media", shown[at]?.card)?.focus({ preventScroll: false });
});
player.addEventListener("click", (event) => {
  if (event.target === player) player.close(); // the backdrop
  act(event.target.closest("[data-do]")?.dataset.do);
});

function act(name) {
  if (name === "close") player.close();
  if (name === "again" && shown[at].id) film.isPreview ? (film.currentTime = 0) : seek(shown[at].start_s);
  if (name === "like" && shown[at].id) moreLike(shown[at]);
  if (name === "before" && at > 0) play(at - 1);
  if (name === "next" && at + 1 < shown.length) play(at + 1);
  if (name === "link") copy(location.origin + location.pathname + address(shown[at].id), "link");
  if (name === "path") ask(`api/videos/${shown[at].video}/path`).then(({ path }) => copy(path, "path")).catch((error) => { $(".note", player).textContent = error.message; });
}

async function copy(words, what) {
  try {
    await navigator.clipboard.writeText(words);
    $(".note", player).textContent = `Copied the ${what}.`;
  } catch { // not allowed, or not over plain HTTP
    $(".note", player).textContent = words;
  }
}

// ---- the form, keys, drops

let typing = 0;

function changed({ now = false } = {}) {
  clearTimeout(typing);
  k = PAGE;
  typing = setTimeout(() => { writeAddress({ isStep: isSettled }); search(); }, now ? 0 : PAUSE_MS);
}

text.addEventListener("input", () => { if (text.value.trim()) setLike(null); changed(); });
form.addEventListener("submit", (event) => { event.preventDefault(); changed({ now: true }); });
filters.addEventListener("input", () => changed());
$("#clear-filters").addEventListener("click", () => {
  for (const name of FILTERS) form.elements[name].value = name === "false_accept" ? USUAL : "";
  changed({ now: true });
});
$("#like button").addEventListener("click", () => { setLike(null); changed({ now: true }); text.focus(); });
$("#more").addEventListener("click", () => { k += PAGE; search(); });
$("#camera").addEventListener("click", () => $("#picture").click());
$("#picture").addEventListener("change", (event) => { withPicture(event.target.files[0]); event.target.value = ""; });
$("#show-filters").addEventListener("click", () => showFilters(filters.hidden));
$("#show-help").addEventListener("click", () => $("#help").showModal());
$("#theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  setTheme(isDark ? "light" : "dark");
});

function showFilters(isShown) {
  filters.hidden = !isShown;
  $("#show-filters").ariaExpanded = String(isShown);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("theme", theme); } catch { /* a browser that keeps nothing */ }
}

function step(by) {
  const places = [...list.querySelectorAll(".media")];
  const here = places.findIndex((media) => media.closest(".card").contains(document.activeElement));
  const next = here + by;
  if (here >= 0 && next < 0) return text.focus();
  places[Math.min(Math.max(next, 0), places.length - 1)]?.focus();
}

function columns() {
  return Math.max(1, getComputedStyle(list).gridTemplateColumns.split(" ").length);
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { key } = event;
  if (player.open) {
    const name = { n: "next", p: "before", r: "again", m: "like" }[key];
    if (name) { event.preventDefault(); act(name); }
    return;
  }
  if ($("dialog[open]")) return;
  const isWriting = event.target.matches("input, select, textarea");
  if (key === "Escape" && event.target === text) { text.value = ""; setLike(null); changed({ now: true }); return; }
  if (key === "Escape") { if (like && !isWriting) setLike(null), changed({ now: true }); text.focus(); return; }
  if (key === "ArrowDown" && event.target === text && !list.hidden) { event.preventDefault(); step(1); return; }
  if (isWriting) return;
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() }[key];
  if (by && list.contains(document.activeElement)) { event.preventDefault(); step(by); }
  if (key === "/") { event.preventDefault(); text.focus(); text.select(); }
  if (key === "f") { showFilters(filters.hidden); if (!filters.hidden) event.preventDefault(), form.elements.without.focus(); }
  if (key === "?") $("#help").showModal();
  if (key === "m") {
    const moment = shown.find((m) => m.card.contains(document.activeElement));
    if (moment?.id) moreLike(moment);
  }
});

addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); withPicture(event.dataTransfer.files[0]); });
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files][0];
  if (file) { event.preventDefault(); withPicture(file); }
});
addEventListener("popstate", onHistory);

async function showAbout() {
  about = await ask("api/about").catch(() => about);
  $("#warning").hidden = !about.warning;
  $("#warning").textContent = about.warning;
  $("#examples").replaceChildren("Try ", ...about.examples.map((example) => {
    const button = make("button", { type: "button" }, example);
    button.addEventListener("click", () => { text.value = example; setLike(null); writeAddress({ isStep: true }); search(); });
    return button;
  }));
  $("#examples").hidden = !about.examples.length || Boolean(asked()) || !shown.length;
}

// ---- words and numbers

const thumbnail = (video, time_s) => `api/videos/${video}/thumbnail?time_s=${time_s.toFixed(2)}&height=270`;
const middle = ({ start_s, end_s }) => (start_s + end_s) / 2;
const many = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
const percent = (share) => `${share < 0.01 ? (100 * share).toFixed(1) : Math.round(100 * share)} %`;
const sentence = (words) => `${words[0].toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;

function clock(time_s) {
  const tenths = Math.round(10 * time_s);
  const seconds = (tenths / 10) % 60, minutes = Math.floor(tenths / 600) % 60, hours = Math.floor(tenths / 36000);
  const end = (tenths % 10 ? seconds.toFixed(1) : seconds.toFixed(0)).padStart(tenths % 10 ? 4 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${end}` : `${minutes}:${end}`;
}

function span(time_s) {
  if (time_s < 120) return `${Math.round(time_s)} seconds`;
  return time_s < 7200 ? `${Math.round(time_s / 60)} minutes` : `${(time_s / 3600).toFixed(1)} hours`;
}

try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* a browser that keeps nothing */ }
await readAddress();
await showAbout();
