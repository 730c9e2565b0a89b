/* A list of ten thousand rows of which some thirty are elements.

   Items are oldest first, and rows hang from the bottom of the spacer: a new row changes the spacer's height
   and nothing else. While the reader has scrolled away, or has paused, what comes waits in `held`. */
import { $ } from './text.js';
import { KEEP, state } from './store.js';

const SLACK = 500;

export class VirtualList {
  constructor(box, spacer, kind, schedule) {
    Object.assign(this, { box, spacer, schedule }, kind);
    this.items = [];
    this.held = [];
    this.rows = new Map();
    this.free = [];
    this.base = 0;
    this.height = 32;
    this.top = 0;
    this.view = 0;
    this.dirty = true;
    box.addEventListener(
      'scroll',
      () => {
        this.top = box.scrollTop;
        this.touch();
      },
      { passive: true },
    );
    new ResizeObserver(() => this.measure()).observe(box);
  }

  touch() {
    this.dirty = true;
    this.schedule();
  }

  /** Shows rows of another kind: `make`, `fill`, `key`, `tall`, `chosen`. */
  become(kind) {
    Object.assign(this, kind);
    this.free = [];
  }

  measure() {
    this.view = this.box.clientHeight;
    $('heads').style.paddingRight = 12 + this.box.offsetWidth - this.box.clientWidth + 'px'; // a scroll bar
    const row = getComputedStyle(document.documentElement).getPropertyValue('--row');
    this.height = Math.max(parseFloat(row) || 32, this.tall);
    this.spacer.style.setProperty('--row', this.height + 'px');
    this.reset();
  }

  reset() {
    for (const row of this.rows.values()) row.remove();
    for (const row of this.free) row.remove();
    this.rows.clear();
    this.free.length = 0;
    this.touch();
  }

  set(items) {
    this.items = items;
    this.held = [];
    this.base = 0;
    this.reset();
    this.toTop();
  }

  toTop() {
    this.box.scrollTop = 0;
    this.top = 0;
  }

  follows() {
    return !state.paused && this.top < 4;
  }

  push(list) {
    const into = this.follows() ? this.items : this.held;
    for (const item of list) into.push(item);
    this.dirty = true;
    if (this.held.length > KEEP) this.held.splice(0, this.held.length - KEEP);
  }

  release() {
    for (const item of this.held) this.items.push(item);
    this.held = [];
    this.toTop();
    this.trim();
    this.touch();
  }

  trim() {
    const over = this.items.length - KEEP;
    if (over > SLACK && this.follows()) {
      this.items.splice(0, over);
      this.base += over;
      this.dirty = true;
    }
  }

  /** The item at place `i` from the newest. */
  at(i) {
    return this.items[this.items.length - 1 - i];
  }

  indexOf(item) {
    const i = this.items.lastIndexOf(item);
    return i < 0 ? -1 : this.items.length - 1 - i;
  }

  reveal(i) {
    const y = i * this.height;
    if (y < this.box.scrollTop) this.box.scrollTop = y;
    else if (y + this.height > this.box.scrollTop + this.view)
      this.box.scrollTop = y + this.height - this.view;
    this.top = this.box.scrollTop;
  }

  draw() {
    if (!this.dirty) return;
    this.dirty = false;
    const n = this.items.length;
    const height = this.height;
    if (this.drawn !== n * height) {
      this.drawn = n * height;
      this.spacer.style.height = this.drawn + 'px';
      this.box.setAttribute('aria-rowcount', n);
    }
    const from = Math.max(0, Math.floor(this.top / height) - 4);
    const to = Math.min(n, Math.ceil((this.top + this.view) / height) + 4);
    const wanted = new Set();
    for (let i = from; i < to; i++) wanted.add(this.key(this.at(i)));
    for (const [key, row] of this.rows) {
      if (wanted.has(key)) continue;
      this.rows.delete(key);
      this.free.push(row);
    }
    for (let i = from; i < to; i++) this.place(this.at(i), i, n);
    while (this.free.length > 12) this.free.pop().remove();
    for (const row of this.free) this.shift(row, 1e4);
    const active = this.rows.get(this.chosen());
    if (active) this.box.setAttribute('aria-activedescendant', active.id);
    else this.box.removeAttribute('aria-activedescendant');
  }

  place(item, i, n) {
    const key = this.key(item);
    let row = this.rows.get(key);
    if (!row) {
      row = this.free.pop() || this.make();
      this.rows.set(key, row);
      row.item = null;
      if (!row.isConnected) this.spacer.append(row);
    }
    if (row.item !== item || row.version !== item.version) {
      this.fill(row, item);
      row.item = item;
      row.version = item.version;
      row.id = 'row-' + key;
    }
    this.shift(row, -(n - 1 - i) * this.height);
    row.setAttribute('aria-rowindex', i + 1);
    const on = key === this.chosen();
    if (row.on !== on) {
      row.on = on;
      row.setAttribute('aria-selected', on);
    }
  }

  shift(row, by) {
    if (row.shifted === by) return;
    row.shifted = by;
    row.style.transform = `translateY(${by}px)`;
  }
}
