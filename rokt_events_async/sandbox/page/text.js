/* Elements and words. Whatever came over the wire is written as text nodes; nothing here parses HTML. */

export const $ = (id) => document.getElementById(id);

export function h(tag, attrs, ...children) {
  const el = document.createElement(tag);
  for (const name in attrs) {
    const value = attrs[name];
    if (name === 'on') for (const type in value) el.addEventListener(type, value[type]);
    else if (name === 'class') el.className = value;
    else if (name.startsWith('aria-') && value != null) el.setAttribute(name, String(value));
    else if (value === true) el.setAttribute(name, '');
    else if (value !== false && value != null) el.setAttribute(name, value);
  }
  el.append(...children.filter((child) => child != null && child !== false));
  return el;
}

const SVG = 'http://www.w3.org/2000/svg';

export function s(tag, attrs, ...children) {
  const el = document.createElementNS(SVG, tag);
  for (const name in attrs) el.setAttribute(name, attrs[name]);
  el.append(...children);
  return el;
}

export const icon = (name, cls) =>
  s(
    'svg',
    { class: 'icon' + (cls ? ' ' + cls : ''), 'aria-hidden': 'true' },
    s('use', { href: '#i-' + name }),
  );

/** Writes a text only if it has changed, into the text node that is there. */
export function setText(el, text) {
  const first = el.firstChild;
  if (first && first.nodeType === 3 && !first.nextSibling) {
    if (first.data !== text) first.data = text;
  } else el.textContent = text;
}

export const count = (n) => n.toLocaleString('en-US');
export const many = (n, one, more) => `${count(n)} ${n === 1 ? one : more || one + 's'}`;

const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
const escaped = (c) => '\\u' + c.charCodeAt(0).toString(16).padStart(4, '0');

/** Control and direction characters as escapes, so that a value cannot rearrange the line that it is in. */
export function vis(text, most = 400) {
  const all = String(text);
  const shown = all.slice(0, most).replace(UNSEEN, escaped);
  return all.length > most ? shown + `… (${count(all.length)} characters)` : shown;
}

/** The same for text of several lines. */
export const visLines = (text) => text.replace(UNSEEN, (c) => (c === '\n' ? c : escaped(c)));

const two = (n) => (n < 10 ? '0' : '') + n;

export function clock(t) {
  const d = new Date(t);
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
}

export const milli = (t) => '.' + String(new Date(t).getMilliseconds()).padStart(3, '0');

/** A time in milliseconds, in the unit that fits it. */
export function span(ms) {
  if (ms == null) return '—';
  if (ms < 1000) return `${ms} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
  return `${Math.round(ms / 60000)} min`;
}

export const short = (id) => vis((id || '').slice(0, 8)) || '—';

export const narrow = () => matchMedia('(max-width: 719px)').matches;

// What is told to the reader.

let toastTimer = 0;

export function toast(text, undo) {
  const el = $('toast');
  el.replaceChildren(h('span', {}, text));
  if (undo) {
    const act = () => {
      el.hidden = true;
      undo();
    };
    el.append(h('button', { type: 'button', class: 'small', on: { click: act } }, 'Undo'));
  }
  el.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(
    () => {
      el.hidden = true;
    },
    undo ? 8000 : 2600,
  );
}

/** For screen readers. */
export const tell = (text) => {
  $('live').textContent = text;
};

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without the permission, or not on loopback.
    const area = h('textarea', { class: 'sr' });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  toast(`${what} copied`);
}

export const remember = (key, value) => {
  try {
    localStorage.setItem(key, value);
  } catch {
    /* a private window */
  }
};

export const recall = (key) => {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
};
