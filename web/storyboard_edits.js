/**
 * What can be done to a storyboard: pure functions from a document to a new one. Whether the result keeps the rules is seen by
 * writing and reading it again (`edited`), so no edit can leave a text behind that cannot be used.
 *
 * Notable: comments stand in front of a shot and go with it when it is moved; when it is deleted they stay.
 */

import { readStoryboard, writeStoryboard } from "./storyboard.js";
import { halves } from "./timeline_layout.js";

/** The text and the document after an edit. Throws StoryboardError where the result would break a rule. */
export function edited(document, edit) {
    const text = writeStoryboard(edit(document));
    return { text, document: readStoryboard(text) };
}

/** Change values of one shot: {prompt?, seconds?, keyframe?}. */
export const change = (index, values) => (document) =>
    withRows(document, document.rows.map((row, place) => (place === index ? { ...row, ...values } : row)));

export const setPrefix = (prefix) => (document) => ({ ...document, prefix });

/** A shot cut in two at `first` seconds, or where it is sensible; the keyframe stays with the first part. */
export const split = (index, first) => (document) => {
    const row = document.rows[index];
    const [before, after] = first === undefined ? halves(row.seconds) : [first, row.seconds - first];
    const rows = document.rows.toSpliced(index, 1, { ...row, seconds: before }, { ...twin(document, row), seconds: after, keyframe: null });
    return withRows(document, rows);
};

export const duplicate = (index) => (document) =>
    withRows(document, document.rows.toSpliced(index + 1, 0, twin(document, document.rows[index])));

/** A new shot at `index`. */
export const insert = (index, prompt, seconds = 1) => (document) => {
    const neighbour = document.rows[Math.max(0, index - 1)];
    const row = { ...twin(document, neighbour), source: null, prompt, seconds, keyframe: null };
    return withRows(document, document.rows.toSpliced(index, 0, row));
};

export const remove = (index) => (document) => {
    const rows = document.rows.toSpliced(index, 1);
    const { lead } = document.rows[index];
    if (document.shell.form === "json" || !lead) return withRows(document, rows);
    if (index < rows.length) return withRows(document, rows.with(index, { ...rows[index], lead: lead + rows[index].lead }));
    return { ...document, rows, shell: { ...document.shell, tail: lead + document.shell.tail } };
};

/** The shot at `from` put where the shot at `to` is. */
export const move = (from, to) => (document) => {
    const rows = document.rows.toSpliced(from, 1);
    return withRows(document, rows.toSpliced(to, 0, document.rows[from]));
};

/** Where a row that was at `index` is now, after any edits of others; -1 where it is gone, or several could be it. */
export const placeOf = (row, index) => ({ rows }) => {
    const isIt = (other) => ["prompt", "seconds", "keyframe"].every((key) => other?.[key] === row[key]);
    if (isIt(rows[index])) return index;
    const place = rows.findIndex(isIt);
    return rows.slice(place + 1).some(isIt) ? -1 : place;
};

const withRows = (document, rows) => ({ ...document, rows });

/** A second shot like this one; comments are not written twice. */
function twin(document, row) {
    if (document.shell.form === "text") return { ...row, lead: "" };
    const spaced = document.rows.find((other, index) => index > 0) ?? row;
    return { ...row, lead: spaced.lead || " " };
}
