//! A side of an HTTP/2 connection that has said all it will say: who asked before that still hears the answer.
//!
//! The library ends a connection, and every stream on it, when nothing more can be read. So the end is held back from it
//! until the last whole request is answered, and what was not whole is reset before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Waker;

use crate::http::frame::{FrameHead, RST_STREAM, Role};

/// Streams that are watched: more than there may be at a time.
const OPEN_MAX: usize = 512;

const NO_ERROR: u32 = 0;
const CANCEL: u32 = 8;

/// The streams of one connection that have begun and not ended.
#[derive(Debug)]
pub(crate) struct Open {
    /// Which side we are.
    role: Role,
    /// By number.
    streams: Vec<Stream>,
    newest: u32,
    end: End,
    /// Whoever waits for the end that is held back.
    reader: Option<Waker>,
    /// One was reset just now: first the library has to look at what is there.
    paused: bool,
}

/// That the other side has said its end, and whether it is still spoken to.
#[derive(Debug, Clone, Default)]
pub(crate) struct End(Arc<Said>);

#[derive(Debug, Default)]
struct Said {
    said: AtomicBool,
    lately: AtomicBool,
}

/// What stands where the other side's end was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AtEnd {
    /// A frame that was not sent: it resets a stream.
    Frame(Vec<u8>),
    /// Nothing yet, and the reader is woken.
    Wait,
    /// The end.
    End,
}

/// A stream, and whose last frame of it was seen.
#[derive(Debug, Clone, Copy)]
struct Stream {
    number: u32,
    asked: bool,
    answered: bool,
}

// === impl Open ===

impl Open {
    pub(crate) fn new(role: Role) -> Self {
        Self {
            role,
            streams: Vec::new(),
            newest: 0,
            end: End::default(),
            reader: None,
            paused: false,
        }
    }

    /// The peer's, for whoever waits for a word.
    pub(crate) fn end(&self) -> End {
        self.end.clone()
    }

    /// Whether nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// A frame of the peer's, other than a header block's. Its payload may still have to come.
    pub(crate) fn received(&mut self, frame: &FrameHead) {
        if frame.kind == RST_STREAM {
            self.forget(frame.stream);
        } else if frame.ends_stream() {
            self.ends(frame.stream, self.role == Role::Client);
        }
    }

    /// A header block of the peer's.
    pub(crate) fn received_head(&mut self, stream: u32, ends: bool) {
        if self.role == Role::Server {
            self.begins(stream);
        }
        if ends {
            self.ends(stream, self.role == Role::Client);
        }
    }

    /// A frame of ours.
    pub(crate) fn sent(&mut self, frame: &FrameHead) {
        if frame.kind == RST_STREAM {
            self.forget(frame.stream);
        } else if frame.opens_stream() && self.role == Role::Client {
            self.begins(frame.stream);
        }
        if frame.ends_stream() {
            self.ends(frame.stream, self.role == Role::Server);
        }
        if self.end.is_said() {
            self.end.0.lately.store(true, Relaxed);
            if self.streams.is_empty() {
                self.reader.take().into_iter().for_each(Waker::wake);
            }
        }
    }

    /// The peer's end was read, between two frames. It is asked for again until it is given.
    pub(crate) fn at_end(&mut self, reader: &Waker) -> AtEnd {
        self.end.0.said.store(true, Relaxed);
        if std::mem::take(&mut self.paused) {
            reader.wake_by_ref();
            return AtEnd::Wait;
        }
        let (cut, error) = match self.role {
            // A request that will never be whole.
            Role::Server => (self.streams.iter().position(|stream| !stream.asked), CANCEL),
            // A whole answer to a request that nobody reads any more (RFC 9113, 8.1): it stays whole.
            Role::Client => (
                self.streams.iter().position(|stream| stream.answered && !stream.asked),
                NO_ERROR,
            ),
        };
        if let Some(index) = cut {
            let Stream { number, .. } = self.streams.remove(index);
            self.paused = self.role == Role::Server;
            let mut frame = Vec::new();
            FrameHead::write(RST_STREAM, 0, number, &error.to_be_bytes(), &mut frame);
            return AtEnd::Frame(frame);
        }
        // Who answers has nothing more to say to what is not answered by now.
        if self.streams.is_empty() || self.role == Role::Client {
            return AtEnd::End;
        }
        self.reader = Some(reader.clone());
        AtEnd::Wait
    }

    fn begins(&mut self, stream: u32) {
        // A second header block is trailers.
        if stream > self.newest {
            self.newest = stream;
            if self.streams.len() == OPEN_MAX {
                self.streams.remove(0);
            }
            self.streams.push(Stream {
                number: stream,
                asked: false,
                answered: false,
            });
        }
    }

    fn ends(&mut self, stream: u32, answer: bool) {
        let Ok(index) = self.streams.binary_search_by_key(&stream, |stream| stream.number) else {
            return;
        };
        let Some(stream) = self.streams.get_mut(index) else {
            return;
        };
        if answer {
            stream.answered = true;
        } else {
            stream.asked = true;
        }
        if stream.asked && stream.answered {
            self.streams.remove(index);
        }
    }

    fn forget(&mut self, stream: u32) {
        if let Ok(index) = self.streams.binary_search_by_key(&stream, |stream| stream.number) {
            self.streams.remove(index);
        }
    }
}

// === impl End ===

impl End {
    /// Whether it says nothing any more.
    pub(crate) fn is_said(&self) -> bool {
        self.0.said.load(Relaxed)
    }

    /// Whether anything was written to it since this was asked last.
    pub(crate) fn lately(&self) -> bool {
        self.0.lately.swap(false, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::frame::{DATA, END_STREAM, HEADERS};

    fn frame(kind: u8, flags: u8, stream: u32) -> FrameHead {
        FrameHead {
            length: 0,
            kind,
            flags,
            stream,
        }
    }

    fn reset(stream: u32, error: u32) -> AtEnd {
        let mut frame = Vec::new();
        FrameHead::write(RST_STREAM, 0, stream, &error.to_be_bytes(), &mut frame);
        AtEnd::Frame(frame)
    }

    #[test]
    fn a_server_answers_what_is_whole_and_resets_the_rest() {
        let mut open = Open::new(Role::Server);
        for stream in [1, 3, 5, 7, 9] {
            open.received_head(stream, stream == 1);
        }
        open.received(&frame(DATA, END_STREAM, 3));
        open.received_head(5, true); // trailers
        open.received(&frame(DATA, 0, 7));
        open.received(&frame(RST_STREAM, 0, 9));
        let waker = Waker::noop();
        assert_eq!(open.at_end(waker), reset(7, CANCEL));
        assert!(open.end().is_said());
        for _ in 0..3 {
            assert_eq!(open.at_end(waker), AtEnd::Wait);
        }
        open.sent(&frame(HEADERS, END_STREAM, 1));
        open.sent(&frame(HEADERS, 0, 3));
        open.sent(&frame(RST_STREAM, 0, 5));
        assert_eq!(open.at_end(waker), AtEnd::Wait);
        assert!(open.end().lately() && !open.end().lately());
        open.sent(&frame(DATA, END_STREAM, 3));
        assert_eq!(open.at_end(waker), AtEnd::End);
    }

    #[test]
    fn an_answer_before_the_request_is_whole_does_not_keep_it_open() {
        let mut open = Open::new(Role::Server);
        open.received_head(1, false);
        open.sent(&frame(HEADERS, END_STREAM, 1));
        assert_eq!(open.at_end(Waker::noop()), reset(1, CANCEL));
    }

    #[test]
    fn a_client_takes_whole_answers_and_waits_for_no_other() {
        let mut open = Open::new(Role::Client);
        for stream in [1, 3, 5] {
            open.sent(&frame(HEADERS, if stream == 5 { END_STREAM } else { 0 }, stream));
        }
        open.received_head(1, true);
        open.received_head(3, false);
        let waker = Waker::noop();
        assert_eq!(open.at_end(waker), reset(1, NO_ERROR));
        assert_eq!(open.at_end(waker), AtEnd::End);
    }

    #[test]
    fn what_is_watched_is_bounded() {
        let mut open = Open::new(Role::Server);
        for stream in 0..10_000 {
            open.received_head(2 * stream + 1, true);
        }
        assert_eq!(open.streams.len(), OPEN_MAX);
    }
}
