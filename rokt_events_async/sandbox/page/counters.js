/* The counters above the list, and the requests a second. */
import { $, count, setText } from './text.js';
import { state } from './store.js';

export function counters() {
  const { totals } = state;
  for (const name of ['requests', 'accepted', 'refused', 'twice', 'sessions'])
    setText($('s-' + name), count(totals[name]));
  const seen = totals.accepted + totals.refused;
  const share = seen ? (totals.accepted / seen) * 100 : 0;
  const none = '\u00a0';
  setText($('s-accepted-sub'), seen ? `${share === 100 ? '100' : share.toFixed(1)} % of events` : none);
  setText($('s-requests-sub'), totals.requests ? `${(seen / totals.requests).toFixed(1)} events each` : none);
  setText($('s-refused-sub'), totals.refused ? `${(100 - share).toFixed(1)} % of events` : 'none so far');
  setText($('s-twice-sub'), totals.twice ? 'accepted again' : 'none so far');
  setText(
    $('s-sessions-sub'),
    totals.sessions ? `${(totals.requests / totals.sessions).toFixed(1)} requests each` : none,
  );
}

/** How many requests came in each of the last seconds, by the sandbox's clock: [all, not 2xx]. */
let seconds = [];

/** Draws the requests a second; with new figures, if there are any. */
export function spark(figures = seconds) {
  seconds = figures;
  const most = Math.max(0, ...seconds.map(([all]) => all));
  const bars = (which) =>
    seconds
      .map((bin, i) => {
        const y = Math.round((bin[which] / Math.max(4, most)) * 38);
        return y ? `M${i * 4} 40v${-y}h3v${y}z` : '';
      })
      .join('');
  $('spark-all').setAttribute('d', bars(0));
  $('spark-off').setAttribute('d', bars(1));
  const rate = state.conn === 'live' ? seconds.slice(-5).reduce((sum, [all]) => sum + all, 0) / 5 : 0;
  setText($('s-rate'), rate >= 10 ? String(Math.round(rate)) : rate.toFixed(1));
  const label = `Requests a second over the last minute: now ${rate.toFixed(1)}, at most ${most}`;
  $('spark').setAttribute('aria-label', label);
}
