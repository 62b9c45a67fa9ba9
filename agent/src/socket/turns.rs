//! A stream whose answers are made one by one, each when it is asked for: a stream that waits is no more than what it waits with.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio_stream::Stream;
use tonic::Status;

/// Who makes the answers of one stream.
pub(crate) trait Teller: Send + Sized + 'static {
    /// What is told.
    type Answer: Send;

    /// The next answer, when there is one to give; an error is the last. `None` when the stream has ended.
    fn next(&mut self) -> impl Future<Output = Option<Result<Self::Answer, Status>>> + Send;
}

/// The stream of a teller's answers. It makes the next one when that is asked for, so nothing queues for a slow caller, and
/// what the teller holds goes when the caller hangs up.
pub(crate) struct Turns<T: Teller>(Option<Turn<T>>);

/// The next answer, and who makes the one after it.
type Turn<T> = Pin<Box<dyn Future<Output = (Option<Result<<T as Teller>::Answer, Status>>, T)> + Send>>;

// === impl Turns ===

impl<T: Teller> Turns<T> {
    pub(crate) fn new(teller: T) -> Self {
        Self(Some(Box::pin(turn(teller))))
    }
}

async fn turn<T: Teller>(mut teller: T) -> (Option<Result<T::Answer, Status>>, T) {
    let answer = teller.next().await;
    (answer, teller)
}

impl<T: Teller> Stream for Turns<T> {
    type Item = Result<T::Answer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(current) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let (answer, teller) = ready!(current.as_mut().poll(cx));
        self.0 = matches!(answer, Some(Ok(_))).then(|| Box::pin(turn(teller)) as Turn<T>);
        Poll::Ready(answer)
    }
}
