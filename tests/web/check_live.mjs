// What the live view makes of messages, of time, and of pictures that come late.
import assert from "node:assert/strict";
import { finishedCount, flying, heard, isOpen, newest, restored, shownChunks } from "../../web/live_runs.js";
import * as time from "../../web/live_time.js";
import { createStripStore } from "../../web/strip_store.js";

const FPS = 24;
const about = (more = {}) => ({
    run: "a", node: "12", prompt_id: "p", state: "running", fps: FPS, first: 0, end: 4, next: 0, seed: 7, previews: true,
    shots: [{ prompt: "a dot", start: 0, end: 1 }, { prompt: "it turns", start: 1, end: 3.5 }], ...more,
});
const chunk = (index, more = {}) => ({
    run: "a", node: "12",
    chunk: { index, shot: index ? 1 : 0, start: index, end: Math.min(index + 1, 3.5), frames: index === 3 ? 12 : 24, strip: { filename: `${index}.jpg`, columns: 6, rows: 4, width: 64, height: 48 }, ...more },
});
const step = (flights) => ({ run: "a", node: "12", step: 9, steps: 44, seconds_left: 3, fps: 8, flying: flights.map(([number, done]) => ({ chunk: number, step: done, steps: 16 })) });
const all = (...messages) => messages.reduce((runs, [kind, message]) => heard(runs, `magi.${kind}`, message), new Map());

// Messages.
assert.equal(all(["step", step([])], ["chunk", chunk(0)]).size, 0, "nobody spoke of that run yet");
let runs = all(["run", about()], ["step", step([[0, 9], [1, 5]])], ["chunk", chunk(1)], ["chunk", chunk(0)]);
assert.deepEqual(shownChunks(runs.get("a")).map((one) => one.index), [0, 1]);
assert.equal(finishedCount(runs.get("a")), 2);
assert.deepEqual(flying(runs.get("a")), [], "what is finished flies no more");
runs = heard(runs, "magi.step", step([[1, 16], [2, 9], [3, 5], [4, 1]]));
assert.deepEqual(flying(runs.get("a")).map((one) => one.chunk), [2, 3], "chunks behind the end are not of this run");
assert.equal(finishedCount(heard(runs, "magi.run", about({ video: {} })).get("a")), 2, "a message that is late takes nothing back");
const paused = heard(runs, "magi.run", about({ state: "paused", next: 2 }));
const again = heard(paused, "magi.run", about({ next: 1, seed: 8, take: 2 }));
assert.deepEqual([...again.get("a").chunks.keys()], [0], "a retry takes back");
assert.equal(finishedCount(again.get("a")), 1);
assert.equal(heard(paused, "magi.run", about({ prompt_id: "q", next: 2 })).get("a").chunks.size, 0, "another prompt begins anew");
assert.equal(finishedCount({ about: about({ first: 8, end: 12, next: 8 }), chunks: new Map() }), 0);
assert.deepEqual([...all(["run", about()], ["run", about({ run: "b" })], ["run", about({ prompt_id: "q" })]).keys()], ["b", "a"]);
const several = all(["run", about()], ["run", about({ run: "b" })], ["run", about({ run: "c", workflow: "w" })], ["run", about({ run: "d", node: "5:12" })]);
assert.deepEqual(newest(several).map((one) => one.about.run), ["b", "c", "d"], "of each node in each workflow");

// Everything at once, and after the server was started anew.
const told = { runs: [{ ...about({ next: 2 }), steps: step([[2, 3]]), chunks: [chunk(0).chunk, chunk(1).chunk] }] };
assert.deepEqual(shownChunks(restored(told).get("a")), shownChunks(runs.get("a")));
assert.ok(!("chunks" in restored(told).get("a").about));
assert.equal(restored({ runs: [] }, runs).get("a").about.state, "stopped");
assert.deepEqual([...restored({ runs: [{ ...about({ run: "c" }), steps: null, chunks: [] }] }, runs).keys()], ["a", "c"]);

// Seconds, chunks and frames.
const run = all(["run", about({ next: 4, state: "finished" })], ...[0, 1, 2, 3].map((index) => ["chunk", chunk(index)])).get("a");
const chunks = shownChunks(run);
for (const one of chunks)
    for (let frame = 0; frame < one.frames; frame += 1)
        for (const second of [one.start + frame / FPS, one.start + (frame + 0.99) / FPS]) {
            const place = time.placeAt(chunks, second, FPS);
            assert.deepEqual([place.chunk.index, place.frame], [one.index, frame], String(second));
        }
assert.deepEqual(time.placeAt(chunks, 99, FPS), { chunk: chunks[3], frame: 11 });
assert.equal(time.placeAt([], 0, FPS), null);
assert.equal(time.placeAt(chunks.slice(2), 0, FPS).chunk.index, 2, "the nearest there is");
assert.deepEqual(time.partOf(chunks[0].strip, 14), { x: 128, y: 96, width: 64, height: 48 });
assert.deepEqual([0, 0.99, 1, 3.49, 3.5].map((second) => time.shotAt(run.about.shots, second)), [0, 0, 1, 1, 1]);
assert.deepEqual(time.spansOf({ about: about(), chunks: new Map() }).map((span) => span.end), [1, 2, 3, 3.5]);
assert.deepEqual(time.spansOf({ about: about({ first: 8, end: 11, shots: [{ start: 0, end: 3.25 }] }), chunks: new Map([[8, { end: 1.25 }]]) }).map((span) => span.end), [1.25, 2.25, 3.25]);
assert.equal(time.totalOf(run), 3.5);
assert.deepEqual([0, 7.96, 65, 3725].map((second) => time.playClock(second)), ["0:00", "0:07", "1:05", "1:02:05"]);
assert.deepEqual([0, 7.96, 0.1 + 0.2].map((second) => time.playClock(second, true)), ["0:00.0", "0:07.9", "0:00.3"]);

// The player: it follows the newest chunk, until somebody seeks; what is finished is shown from its start.
const making = (...done) => all(["run", about()], ...done.map((index) => ["chunk", chunk(index)])).get("a");
let player = time.told(time.newPlayer(true), null, making(0));
assert.equal(time.ticked(player, 0.9, making(0)).second, 0.9);
assert.ok(Math.abs(time.ticked({ ...player, second: 0.9 }, 0.3, making(0)).second - 0.2) < 1e-9, "the newest chunk plays again and again");
player = time.told(player, making(0), making(0, 1));
assert.equal(player.second, 1);
const found = time.sought(player, 0.5, making(0, 1));
assert.deepEqual([found.second, found.following], [0.5, false]);
assert.equal(time.told(found, making(0, 1), making(0, 1, 2)).second, 0.5, "who seeks stays");
assert.ok(time.sought(player, 9, making(0, 1)).second < 2, "not where nothing is finished");
assert.ok(time.told({ ...found, second: 1.9 }, making(0, 1), making(0)).second < 1, "nor where a retry took back");
const once = { ...found, loop: false };
assert.equal(time.ticked({ ...once, second: 1.99 }, 0.1, making(0, 1)).playing, true, "it waits for the next chunk");
assert.equal(time.ticked({ ...once, second: 3.49 }, 0.1, run).playing, false, "and stops at the end of all");
assert.deepEqual(time.told(player, making(0, 1), run), { ...player, second: 0, following: false });
assert.equal(time.ticked({ ...player, playing: false }, 1, run).second, player.second);
assert.equal(time.ticked(time.newPlayer(true), 1, making()).second, 0, "nothing is finished");

// Pictures: only what is wanted is loaded, only a few are kept.
const loads = [];
let ready = 0;
const settle = () => new Promise((resolve) => setTimeout(resolve));
const strips = createStripStore({
    mostPixels: 250,
    onReady: () => (ready += 1),
    load: (key, signal) => new Promise((resolve, reject) => {
        const picture = { key, width: 10, height: 10, closed: false, close: () => (picture.closed = true) };
        signal.addEventListener("abort", () => reject(new Error("aborted")));
        loads.push({ key, signal, done: () => resolve(picture), fail: () => reject(new Error("404")), picture });
    }),
});
strips.want(["a", "b"]);
strips.want(["a", "b"]);
assert.deepEqual(loads.map((load) => load.key), ["a"], "one after the other");
strips.want(["z"]);
assert.equal(loads.length, 1, "what is begun is ended first");
loads[0].done();
await settle();
assert.ok(strips.get("a") && ready === 1 && loads.length === 1);
strips.want(["z"]);
loads[1].done();
await settle();
assert.ok(strips.get("z") && ready === 2);
for (const key of ["c", "d", "e"]) {
    strips.want([key]);
    loads.at(-1).done();
    await settle();
}
assert.deepEqual(["z", "c", "d", "e"].map((key) => !!strips.get(key)), [false, false, true, true], "within 250 pixels");
assert.ok(loads[1].picture.closed);
strips.want(["gone"]);
loads.at(-1).fail();
await settle();
assert.ok(strips.failed("gone"));
const before = loads.length;
strips.want(["gone"]);
assert.equal(loads.length, before, "what is not there is not asked for again");
strips.clear();
assert.ok(loads.every(({ key, picture, signal }) => ["gone"].includes(key) || picture.closed || signal.aborted));
assert.ok(isOpen(making()) && !isOpen(run));
console.log("ok");
