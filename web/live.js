/**
 * The live view of a run: what is finished plays while the rest is made.
 *
 * Notable:
 * - Frames are drawn out of strips, one picture a chunk; only a few are kept decoded. The next one is fetched while one plays.
 * - Drawing happens where something changed: a frame of the page is asked for, and a strip fetched, only while the view can be seen.
 * - Nothing here knows of ComfyUI's graph; `live_widget.js` brings the two together.
 */

import { finishedCount, isOpen, shownChunks } from "./live_runs.js";
import { newPlayer, partOf, placeAt, sought, finishedRange, ticked, told, totalOf } from "./live_time.js";
import { buildView, drawMissing, drawPlayer, drawRun } from "./live_view.js";
import { createReview } from "./review_panel.js";
import { listenToSlider } from "./slider.js";
import { createStripStore } from "./strip_store.js";

const MOST_PIXELS = 24_000_000; // of decoded strips: 96 MB

/**
 * `host`: t (strings.js), url(file), load(strip url, signal) -> picture, answer(run, review), onClose(), onHeight(), passWheel(event).
 * Returns {element, run(), show(run), height(), destroy()}.
 */
export function createLive(host) {
    const { t } = host, view = buildView(t), ending = new AbortController(), { signal } = ending;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const review = createReview({ t, signal, onAnswer: (answer) => host.answer(run, answer) });
    const strips = createStripStore({ load: host.load, onReady: draw, mostPixels: MOST_PIXELS });
    const brush = view.canvas.getContext("2d");
    let player = newPlayer(false);
    let run = null, chunks = [];
    let below = 90; // pixels beneath the picture, until they can be measured
    let seen = false; // as the observer of sizes says: to ask the page would make it lay itself out, for every message
    let ticking = 0, last = null, drawn = "", held = null;
    view.note.before(review.element);

    const keyOf = (chunk) => chunk?.strip && host.url(chunk.strip);

    function show(next) {
        const before = run?.about.prompt_id === next.about.prompt_id ? run : null;
        if (!before) {
            strips.clear();
            player = newPlayer(isOpen(next) && !calm);
            drawn = "";
        }
        const said = run?.about.state;
        run = next;
        chunks = shownChunks(run);
        player = told(player, before, run);
        drawRun(view, run, t, host.url);
        review.show(run, finishedCount(run));
        if (said !== run.about.state) view.live.textContent = `${t(`live.${run.about.state}`)}. ${view.count.textContent}`;
        draw();
    }

    const placeNow = () => placeAt(chunks, player.second, run.about.fps);

    /** Whether the picture of a place is still to come: playing goes on when it is there. */
    function waits(place) {
        const key = run.about.previews && keyOf(place?.chunk);
        return Boolean(key) && !strips.get(key) && !strips.failed(key);
    }

    /** Show the player, and the frame it is at as soon as its strip is there. */
    function draw() {
        if (signal.aborted || !seen) return;
        drawPlayer(view, player, run, chunks, t);
        const place = placeNow(), key = keyOf(place?.chunk);
        if (run.about.previews) {
            const following = chunks[chunks.indexOf(place?.chunk) + 1];
            strips.want([key, player.playing && keyOf(following)].filter(Boolean));
            const picture = key && strips.get(key);
            if (picture) paint(picture, place);
            drawMissing(view, missing(place, key));
        }
        if (player.playing && chunks.length && !ticking) ticking = requestAnimationFrame(tick);
    }

    function paint(picture, { chunk, frame }) {
        const { x, y, width, height: tall } = partOf(chunk.strip, frame), now = `${chunk.strip.filename} ${frame}`;
        if (now === drawn) return;
        if (view.canvas.width !== width || view.canvas.height !== tall) Object.assign(view.canvas, { width, height: tall });
        brush.drawImage(picture, x, y, width, tall, 0, 0, width, tall);
        drawn = now;
    }

    function missing(place, key) {
        if (!place) return isOpen(run) ? t("live.first") : t("live.nothing");
        if (!key || strips.failed(key)) return t("live.gone");
        return "";
    }

    function tick(now) {
        ticking = 0;
        const elapsed = last === null ? 0 : Math.min(0.25, (now - last) / 1000);
        last = now;
        if (!waits(placeNow())) player = ticked(player, elapsed, run);
        draw();
        if (!ticking) last = null;
    }

    function set(changes) {
        player = { ...player, ...changes };
        draw();
    }
    function seek(second) {
        player = sought(player, second, run);
        draw();
    }

    const acts = {
        play() {
            const { end } = finishedRange(chunks), atEnd = !player.loop && !isOpen(run) && player.second >= end - 1.5 / run.about.fps;
            set({ playing: !player.playing, second: atEnd && !player.playing ? 0 : player.second });
        },
        loop: () => set({ loop: !player.loop }),
        follow() {
            player = told({ ...player, following: !player.following, playing: !player.following || player.playing }, null, run);
            draw();
        },
        close: host.onClose,
    };
    view.root.addEventListener("click", (event) => acts[event.target.closest("button")?.dataset.act]?.(), { signal });
    view.root.addEventListener("pointerdown", (event) => {
        if (event.button === 0) event.stopPropagation(); // else the node is dragged
    }, { signal });
    view.root.addEventListener("wheel", host.passWheel, { signal, passive: false });
    listenToSlider(view.slider, {
        total: () => totalOf(run),
        seek,
        step(frames) {
            player = { ...player, playing: false };
            seek(player.second + frames / run.about.fps);
        },
        ends: (direction) => seek(direction < 0 ? 0 : totalOf(run)),
        hold(down) {
            if (down) held = player.playing;
            set({ playing: down ? false : held });
        },
    }, signal);

    const sizes = new ResizeObserver(() => {
        seen = view.below.offsetHeight > 0;
        if (!seen) return;
        draw(); // nothing was drawn while it was not to be seen
        if (below === view.below.offsetHeight) return; // only wider
        below = view.below.offsetHeight;
        host.onHeight();
    });
    sizes.observe(view.below);

    return {
        element: view.root,
        run: () => run,
        show,
        /** Pixels that the view needs at least. */
        height: () => below + (run.about.previews ? 240 : 52),
        /** End everything that was begun. */
        destroy() {
            ending.abort();
            cancelAnimationFrame(ticking);
            sizes.disconnect();
            strips.clear();
            view.root.remove();
        },
    };
}
