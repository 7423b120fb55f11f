/**
 * Pictures that are fetched when they are looked at, and of which only a few are kept, whatever the video's length. Knows nothing of a page.
 *
 * Notable:
 * - One is fetched at a time, to its end, and then what is wanted by then: dragging over a long video loads what the pointer rests on, and
 *   where fetching is slower than wanting something is seen all the same.
 * - The bound is in pixels, since that is what decoded pictures cost (4 bytes each); what is wanted now is kept in any case.
 */

/**
 * `load(key, signal)` gives a decoded picture {width, height, close()}; `onReady()` is called when one came or failed.
 * Returns {want(keys), get(key), failed(key), clear()}; keys are texts, the first wanted is loaded first.
 */
export function createStripStore({ load, onReady, mostPixels }) {
    const pictures = new Map(); // key -> picture, the one asked for last at the end
    const failures = new Set();
    let wanted = [];
    let loading = null; // AbortController

    function want(keys) {
        wanted = keys;
        const missing = keys.find((key) => !pictures.has(key) && !failures.has(key));
        if (missing && !loading) begin(missing);
    }

    async function begin(key) {
        const controller = (loading = new AbortController());
        try {
            const picture = await load(key, controller.signal);
            if (controller.signal.aborted) return picture.close();
            pictures.set(key, picture);
            bound();
        } catch {
            if (controller.signal.aborted) return;
            failures.add(key);
        }
        loading = null;
        onReady();
    }

    function bound() {
        let pixels = 0;
        for (const [key, picture] of [...pictures].reverse()) {
            pixels += picture.width * picture.height;
            if (pixels <= mostPixels || wanted.includes(key)) continue;
            picture.close();
            pictures.delete(key);
        }
    }

    return {
        want,
        get(key) {
            const picture = pictures.get(key);
            if (picture) {
                pictures.delete(key);
                pictures.set(key, picture);
            }
            return picture;
        },
        failed: (key) => failures.has(key),
        kept: () => pictures.size,
        clear() {
            loading?.abort();
            for (const picture of pictures.values()) picture.close();
            loading = null;
            wanted = [];
            pictures.clear();
            failures.clear();
        },
    };
}
