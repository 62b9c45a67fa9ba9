//! Who makes spans: reads and writes the trace context of requests, and brings what has ended to the queue.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hoplite_host::clock;
use http::{HeaderMap, HeaderValue};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tracing::warn;

use crate::context::{Context, TRACEPARENT, TRACESTATE};
use crate::sent::Sent;
use crate::settings::Ratio;
use crate::span::{Kind, Span};

/// Spans that wait to be sent. At a kilobyte or two each, the most they take.
const SPANS_WAITING_MAX: usize = 2_048;

/// What other tracing systems say is kept in a span up to this length (the standard's own bound).
const STATE_BYTES_MAX: usize = 512;

/// Makes spans. One for all workers.
#[derive(Debug)]
pub struct Tracer {
    ids: Ids,
    /// New traces whose number is below it are sampled.
    sampled_below: u64,
    spans: mpsc::Sender<Span>,
    sent: Sent,
    /// Whether it has been said that the queue is full.
    said: Arc<AtomicBool>,
}

/// Spans that have ended, for who sends them.
#[derive(Debug)]
pub struct Queue {
    #[cfg_attr(not(feature = "export"), expect(dead_code, reason = "nothing is sent"))]
    pub(crate) spans: mpsc::Receiver<Span>,
    #[cfg_attr(not(feature = "export"), expect(dead_code, reason = "nothing is sent"))]
    pub(crate) said: Arc<AtomicBool>,
}

/// A span under way. It ends when this is dropped.
#[derive(Debug)]
pub struct Hop {
    tracer: Arc<Tracer>,
    began: Instant,
    /// None once it has ended.
    span: Option<Box<Span>>,
}

/// Numbers that are unlike those of any other process.
#[derive(Debug)]
struct Ids {
    seeds: [u64; 2],
    next: AtomicU64,
}

// === impl Tracer ===

impl Tracer {
    /// With the queue that it fills.
    pub fn new(sampling: Ratio, sent: Sent) -> (Arc<Self>, Queue) {
        let (spans, waiting) = mpsc::channel(SPANS_WAITING_MAX);
        let said = Arc::new(AtomicBool::new(false));
        let tracer = Self {
            ids: Ids::new(),
            sampled_below: sampling.threshold(),
            spans,
            sent,
            said: said.clone(),
        };
        (Arc::new(tracer), Queue { spans: waiting, said })
    }

    /// Begins the hop of a request with these headers, if its trace is sampled, and has them name it as the parent of what
    /// comes next. A request that belongs to no trace begins one.
    pub fn begin(self: &Arc<Self>, kind: Kind, headers: &mut HeaderMap) -> Option<Hop> {
        let incoming = incoming(headers);
        let (context, parent) = match incoming {
            Some(incoming) if !incoming.is_sampled() => return None,
            Some(incoming) => (incoming.child(self.ids.span()), Some(incoming.span)),
            None => (self.root(), None),
        };
        if parent.is_none() {
            // It says something of a trace that there is not (W3C Trace Context, 3.3).
            headers.remove(TRACESTATE);
        }
        if let Ok(value) = HeaderValue::try_from(context.to_string()) {
            headers.insert(TRACEPARENT, value);
        }
        context.is_sampled().then(|| Hop {
            tracer: self.clone(),
            began: clock::moment(),
            span: Some(Box::new(Span {
                context,
                parent,
                state: state(headers),
                kind,
                name: String::new(),
                began: clock::now(),
                took: Duration::ZERO,
                attributes: Vec::with_capacity(20),
                has_failed: false,
            })),
        })
    }

    fn root(&self) -> Context {
        let trace = u128::from(self.ids.number(1)) << 64 | u128::from(self.ids.span());
        // Of the lower half, which random ids have it in too.
        let is_sampled = (trace as u64) >> 1 < self.sampled_below;
        Context::root(trace, self.ids.span(), is_sampled)
    }

    fn end(&self, span: Span) {
        match self.spans.try_send(span) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => self.sent.dropped(1),
            Err(TrySendError::Full(_)) => {
                self.sent.dropped(1);
                if !self.said.swap(true, Relaxed) {
                    warn!(
                        waiting = SPANS_WAITING_MAX,
                        "spans are dropped: the collector takes fewer than there are. They are counted in otlp_spans_total; requests go on"
                    );
                }
            }
        }
    }
}

/// What a request says of its trace. Said twice, nobody knows which.
fn incoming(headers: &HeaderMap) -> Option<Context> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    match (values.next(), values.next()) {
        (Some(only), None) => Context::parse(only.to_str().ok()?),
        _ => None,
    }
}

fn state(headers: &HeaderMap) -> String {
    let values = headers
        .get_all(TRACESTATE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let state = values.collect::<Vec<_>>().join(",");
    // A part of it might say something else.
    if state.len() <= STATE_BYTES_MAX {
        state
    } else {
        String::new()
    }
}

// === impl Hop ===

impl Hop {
    /// Says something of it.
    pub fn tell(&mut self, say: impl FnOnce(&mut Span)) {
        if let Some(span) = &mut self.span {
            say(span);
        }
    }
}

impl Drop for Hop {
    fn drop(&mut self) {
        if let Some(mut span) = self.span.take() {
            span.took = self.began.elapsed();
            self.tracer.end(*span);
        }
    }
}

// === impl Ids ===

impl Ids {
    fn new() -> Self {
        // What the system gives each process for its hash maps.
        let random = || RandomState::new().hash_one(0_u8);
        Self {
            seeds: [random(), random()],
            next: AtomicU64::new(random()),
        }
    }

    /// A span's number.
    fn span(&self) -> u64 {
        self.number(0)
    }

    /// Never 0, which is no id.
    fn number(&self, seed: usize) -> u64 {
        let seed = self.seeds.get(seed).copied().unwrap_or_default();
        loop {
            let number = mixed(seed ^ mixed(self.next.fetch_add(1, Relaxed)));
            if number != 0 {
                return number;
            }
        }
    }
}

/// SplitMix64's end: each number for one other, and neighbours far apart.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use allocation_counter::measure;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn ratio(ratio: f64) -> Ratio {
        toml::from_str::<std::collections::HashMap<String, Ratio>>(&format!("a = {ratio}")).unwrap()["a"]
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn parent(headers: &HeaderMap) -> Context {
        Context::parse(headers[TRACEPARENT].to_str().unwrap()).unwrap()
    }

    #[test]
    fn a_hop_stands_between_its_parent_and_what_comes_next() {
        let (tracer, mut queue) = Tracer::new(ratio(0.0), Sent::default());
        let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let mut headers = headers(&[("traceparent", &traceparent), ("tracestate", "congo=t61rcWkgMzE")]);
        let mut hop = tracer.begin(Kind::Server, &mut headers).unwrap();
        hop.tell(|span| span.named("GET"));
        drop(hop);
        let span = queue.spans.try_recv().unwrap();
        let next = parent(&headers);
        assert_eq!(format!("{:032x}", next.trace), TRACE);
        assert_eq!((next.span, next.flags), (span.context.span, 1));
        assert_eq!(span.parent, Some(0x00f0_67aa_0ba9_02b7));
        assert_ne!(next.span, 0x00f0_67aa_0ba9_02b7);
        assert_eq!(
            (headers[TRACESTATE].to_str().unwrap(), &*span.state),
            ("congo=t61rcWkgMzE", "congo=t61rcWkgMzE")
        );
    }

    #[test]
    fn an_unsampled_trace_crosses_as_it_came() {
        let (tracer, mut queue) = Tracer::new(ratio(1.0), Sent::default());
        let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-00");
        let before = headers(&[("traceparent", &traceparent), ("tracestate", "a=b")]);
        let mut after = before.clone();
        assert!(tracer.begin(Kind::Client, &mut after).is_none());
        assert_eq!(after, before);
        queue.spans.try_recv().unwrap_err();
    }

    #[test]
    fn what_belongs_to_no_trace_begins_one_and_all_hops_keep_to_it() {
        let (tracer, mut queue) = Tracer::new(ratio(0.25), Sent::default());
        let (mut sampled, mut traces) = (0, HashSet::new());
        for n in 0..4_000 {
            let mut headers = match n % 4 {
                0 => headers(&[("tracestate", "a=b")]),
                1 => headers(&[("traceparent", "00-0-0-01"), ("tracestate", "a=b")]),
                2 => headers(&[
                    ("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01")),
                    ("traceparent", &format!("00-{TRACE}-00f067aa0ba902b8-01")),
                ]),
                _ => HeaderMap::new(),
            };
            let hop = tracer.begin(Kind::Client, &mut headers);
            let here = parent(&headers);
            assert_eq!(here.is_sampled(), hop.is_some(), "the next hop does as this one");
            assert!(!headers.contains_key(TRACESTATE));
            assert!(traces.insert(here.trace) && format!("{:032x}", here.trace) != TRACE);
            if hop.is_some() {
                sampled += 1;
                drop(hop);
                assert_eq!(queue.spans.try_recv().unwrap().parent, None);
            }
        }
        assert!((800..1_200).contains(&sampled), "{sampled} of 4000 at 0.25");
    }

    #[test]
    fn what_finds_no_room_is_counted_and_costs_nothing_more() {
        let sent = Sent::default();
        let (tracer, queue) = Tracer::new(ratio(1.0), sent.clone());
        let begin = || tracer.begin(Kind::Server, &mut HeaderMap::new()).unwrap();
        for _ in 0..SPANS_WAITING_MAX + 100 {
            drop(begin());
        }
        assert_eq!((queue.spans.len(), sent.lost()), (SPANS_WAITING_MAX, 100));
        assert!(queue.said.load(Relaxed));
        // What was dropped is held by nobody.
        let held = measure(|| drop(begin())).bytes_current;
        assert_eq!(held, 0);
        drop(queue);
        drop(begin());
        assert_eq!(sent.lost(), 102);
    }

    #[test]
    fn a_text_is_cut_where_a_letter_ends() {
        let (tracer, mut queue) = Tracer::new(ratio(1.0), Sent::default());
        let mut hop = tracer.begin(Kind::Server, &mut HeaderMap::new()).unwrap();
        hop.tell(|span| span.put("url.path", format!("x{}", "é".repeat(2_000))));
        drop(hop);
        let span = queue.spans.try_recv().unwrap();
        let crate::Value::Text(text) = &span.attributes[0].1 else {
            panic!()
        };
        assert_eq!(text.len(), 1_023);
    }
}
