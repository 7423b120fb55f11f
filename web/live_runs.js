/**
 * What the page knows of runs, made from the server's messages (docs/live.md). Pure: every function returns what is known then.
 *
 * A run is {about, steps, chunks}: the last `magi.run`, the last `magi.step` or null, and the finished chunks by number. `runs` is a Map
 * of them by name, the newest last.
 */

export const KINDS = ["magi.run", "magi.step", "magi.chunk"];

const MOST_RUNS = 12; // as many as the server knows

/** Whether a run still goes on. */
export const isOpen = (run) => run.about.state === "running" || run.about.state === "paused";

/** `runs` after a message. What belongs to a run that nobody spoke of yet is left out: the server tells all of it when asked. */
export function heard(runs, kind, message) {
    const known = runs.get(message.run), after = new Map(runs);
    if (kind === "magi.run") {
        if (known?.about.prompt_id !== message.prompt_id) {
            after.delete(message.run); // begins (again), and so is the newest
            after.set(message.run, { about: message, steps: null, chunks: new Map() });
            if (after.size > MOST_RUNS) after.delete(after.keys().next().value);
        } else after.set(message.run, { ...known, about: message, ...(message.next < known.about.next ? takenBack(known, message.next) : {}) });
    } else if (!known) return runs;
    else if (kind === "magi.step") after.set(message.run, { ...known, steps: message });
    else after.set(message.run, { ...known, chunks: new Map(known.chunks).set(message.chunk.index, message.chunk) });
    return after;
}

function takenBack(known, next) {
    return { chunks: new Map([...known.chunks].filter(([index]) => index < next)), steps: null };
}

/** All that the server knows (GET /magi/runs); what it forgot while it went on was broken off. */
export function restored(document, runs = new Map()) {
    const after = new Map();
    for (const { steps, chunks, ...about } of document.runs)
        after.set(about.run, { about, steps, chunks: new Map(chunks.map((chunk) => [chunk.index, chunk])) });
    const lost = [...runs].filter(([name]) => !after.has(name));
    return new Map([...lost.map(([name, run]) => [name, isOpen(run) ? { ...run, about: { ...run.about, state: "stopped" } } : run]), ...after]);
}

/** The newest run of each node of each workflow. */
export function newest(runs) {
    return [...new Map([...runs.values()].map((run) => [`${run.about.workflow} ${run.about.node}`, run])).values()];
}

/** The finished chunks in order. */
export const shownChunks = (run) => [...run.chunks.values()].sort((one, other) => one.index - other.index);

/** How many of the run's chunks are finished. */
export function finishedCount({ about, chunks }) {
    return Math.max(about.next, ...[...chunks.keys()].map((index) => index + 1), about.first) - about.first;
}

/** The chunks in flight that are not finished, the cleanest first: {chunk, step, steps}. */
export function flying(run) {
    const first = run.about.first + finishedCount(run);
    return isOpen(run) && run.steps ? run.steps.flying.filter(({ chunk }) => chunk >= first && chunk < run.about.end) : [];
}
