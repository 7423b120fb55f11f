/**
 * What the live view looks like: its parts, and how a run is drawn into them. Knows nothing of messages and of playing.
 *
 * Notable: a chunk in flight is noise over its shot's colour, which becomes less with every step, as the chunk itself does.
 */

import { fill, make, put } from "./dom.js";
import { finishedCount, flying, isOpen } from "./live_runs.js";
import { placeAt, playClock, shotAt, spansOf, totalOf } from "./live_time.js";
import { hueOf } from "./shot_colour.js";

const MOST_PARTS = 60; // in the slider; more would be narrower than the lines between them

/** The empty view: {root, ...parts}. Buttons carry what they do in `data-act`. */
export function buildView(t) {
    const button = (act, sign) => make("button", { type: "button", class: "magi-button", "data-act": act, title: t(`live.${act}`), "aria-label": t(`live.${act}`), text: sign });
    const view = {
        canvas: make("canvas", { width: 16, height: 9, role: "img", "aria-label": t("live.picture") }),
        state: make("span", { class: "magi-state" }),
        count: make("span", { class: "magi-count" }),
        missing: make("p", { class: "magi-nothing", hidden: true }),
        shot: make("b"),
        prompt: make("span"),
        slider: make("div", { class: "magi-slider", role: "slider", tabindex: 0, "aria-label": t("live.seek"), "aria-valuemin": 0 }),
        shots: make("div", { class: "magi-strip" }),
        cells: make("div", { class: "magi-strip" }),
        head: make("div", { class: "magi-playhead" }),
        play: button("play", "▶"),
        loop: button("loop", "⟳"),
        follow: button("follow", "⇥"),
        clock: make("span", { class: "magi-clock" }),
        pace: make("span", { class: "magi-pace" }),
        video: make("a", { class: "magi-button", target: "_blank", rel: "noopener", text: t("live.video"), title: t("live.videoTitle"), hidden: true }),
        close: button("close", "✕"),
        flights: make("div", { class: "magi-flights", role: "group", "aria-label": t("live.flying") }),
        note: make("p", { class: "magi-live-note", role: "alert", hidden: true }),
        live: make("span", { class: "magi-unseen", role: "status", "aria-live": "polite" }),
    };
    view.slider.append(view.shots, view.cells, view.head);
    view.stage = make("div", { class: "magi-stage" }, view.canvas, view.missing, make("div", { class: "magi-badge" }, view.state, view.pace, view.count), make("div", { class: "magi-caption" }, view.shot, view.prompt));
    view.below = make(
        "div",
        { class: "magi-below" },
        view.slider,
        make("div", { class: "magi-row" }, make("div", { class: "magi-group" }, view.play, view.loop, view.follow), view.clock, view.video, view.close),
        view.flights,
        view.note,
    );
    view.root = make("div", { class: "magi-live", role: "group", "aria-label": t("live.name") }, view.stage, view.below, view.live);
    return view;
}

/** Draw a run: all but the picture and the playhead. */
export function drawRun(view, run, t, urlOf) {
    const { about, steps } = run, { state } = about, done = finishedCount(run), all = about.end - about.first;
    view.root.dataset.state = state;
    view.root.classList.toggle("magi-unseeing", !about.previews);
    put(view.state, "text", t(`live.${state}`));
    put(view.count, "text", t("live.chunks", { done, all }));
    drawMap(view, run);
    drawFlights(view.flights, run, t);

    const pace = [];
    if (state === "running" && steps?.fps) pace.push(t("live.fps", { fps: steps.fps.toFixed(steps.fps < 10 ? 1 : 0) }));
    if (state === "running" && steps?.seconds_left != null) pace.push(t("live.left", { time: playClock(Math.ceil(steps.seconds_left)) }));
    put(view.pace, "text", pace.join(" · "));

    view.video.hidden = !about.video;
    if (about.video) put(view.video, "href", urlOf(about.video));
    const words = [about.error, about.warning].filter(Boolean).join("\n");
    view.note.hidden = !words;
    put(view.note, "text", words);
}

/** The chunks as the slider shows them: shots beneath, what is not finished over them. */
function drawMap({ shots, cells }, run) {
    const { about } = run, total = totalOf(run) || 1, parts = partsOf(run);
    const place = (element, { start, end }) => {
        element.style.left = `${(start / total) * 100}%`;
        element.style.width = `${((end - start) / total) * 100}%`;
    };
    fill(shots, about.shots.length, () => make("i"));
    about.shots.forEach((shot, index) => {
        place(shots.children[index], shot);
        shots.children[index].style.setProperty("--hue", hueOf(index));
    });
    fill(cells, parts.length, () => make("i"));
    parts.forEach((part, number) => {
        const cell = cells.children[number];
        place(cell, part);
        put(cell, "class", `magi-${part.look}`);
        cell.style.setProperty("--noise", part.noise);
    });
}

/** The run from start to end as it is drawn, [{start, end, look, noise}]: every chunk, or, of a long run, neighbours that look alike as one. */
function partsOf(run) {
    const clean = run.about.first + finishedCount(run), flights = new Map(flying(run).map((flight) => [flight.chunk, flight]));
    const parts = spansOf(run).map(({ index, start, end }) => {
        const flight = flights.get(index), look = index < clean ? "clean" : flight ? "noisy" : "future";
        return { start, end, look, noise: flight ? 1 - flight.step / flight.steps : 1 };
    });
    if (parts.length <= MOST_PARTS) return parts;
    return parts.reduce((joined, part) => {
        const before = joined.at(-1);
        if (before?.look !== part.look || part.look === "noisy") joined.push(part);
        else before.end = part.end;
        return joined;
    }, []);
}

function drawFlights(box, run, t) {
    const flights = flying(run);
    fill(box, flights.length, () => make("div", { class: "magi-flight", role: "progressbar", "aria-valuemin": 0 }, make("i"), make("span")));
    const { shots } = run.about, spans = spansOf(run);
    flights.forEach(({ chunk, step, steps }, number) => {
        const bar = box.children[number], name = t("live.chunk", { chunk: chunk + 1 });
        put(bar, "aria-label", name);
        put(bar, "aria-valuenow", step);
        put(bar, "aria-valuemax", steps);
        put(bar.lastChild, "text", `${name} · ${step}/${steps}`);
        bar.style.setProperty("--done", step / steps);
        bar.style.setProperty("--hue", hueOf(shotAt(shots, spans[chunk - run.about.first].start)));
    });
}

/** Draw where the player is. */
export function drawPlayer(view, player, run, chunks, t) {
    const { about } = run, total = totalOf(run), place = placeAt(chunks, player.second, about.fps);
    const shot = shotAt(about.shots, place ? player.second : 0), { prompt = "" } = about.shots[shot] ?? {};
    view.head.hidden = !place;
    view.head.style.left = `${(player.second / (total || 1)) * 100}%`;
    put(view.clock, "text", `${playClock(place ? player.second : 0, true)} / ${playClock(total)}`);
    put(view.shot, "text", about.shots.length > 1 ? t("live.shot", { shot: shot + 1 }) : "");
    put(view.prompt, "text", prompt);
    view.stage.style.setProperty("--hue", hueOf(Math.max(0, shot)));
    put(view.slider, "aria-valuemax", total);
    put(view.slider, "aria-valuenow", player.second.toFixed(2));
    put(view.slider, "aria-valuetext", t("live.at", { time: playClock(player.second, true), total: playClock(total), shot: shot + 1, prompt }));
    put(view.slider, "aria-disabled", !place);
    const act = player.playing ? "pause" : "play";
    put(view.play, "text", player.playing ? "❚❚" : "▶");
    put(view.play, "title", t(`live.${act}`));
    put(view.play, "aria-label", t(`live.${act}`));
    put(view.loop, "aria-pressed", player.loop);
    put(view.follow, "aria-pressed", player.following);
    view.follow.hidden = !isOpen(run);
}

/** Say in the picture's place why there is none; nothing where `words` is empty. */
export function drawMissing(view, words) {
    view.missing.hidden = !words;
    put(view.missing, "text", words);
}
