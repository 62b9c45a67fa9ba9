//! The task that learns of other replicas' commits: a notification wakes it, and so does a second without one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::failure::Failure;
use crate::schema::{STATE, State};
use crate::session;
use crate::shared::Shared;

/// What a lost notification costs.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A look that takes longer was not answered.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// From one attempt to connect to the next.
const PAUSE: Duration = Duration::from_millis(250);

/// Follows for as long as the runtime lives.
pub(crate) async fn listen(shared: Arc<Shared>) {
    loop {
        let mut answered = false;
        let Err(failure) = follow(&shared, &mut answered).await;
        // A connection that ends is no server that is away: only who cannot make another one knows that.
        if !answered || !failure.may_be_tried_again() {
            shared.failed(&failure);
            sleep(PAUSE).await;
        }
    }
}

/// Never returns but with what went wrong.
async fn follow(shared: &Shared, answered: &mut bool) -> Result<std::convert::Infallible, Failure> {
    let (sender, mut notified) = mpsc::channel(1);
    let client = session::open(&shared.connector, Some(sender)).await?;
    let channel = session::channel(&shared.connector.settings.schema);
    client.batch_execute(&format!("LISTEN \"{channel}\"")).await?;
    let look = format!("SELECT {STATE} FROM state s");
    loop {
        let floor = shared.seen();
        let rows = timeout(LOOK_TIMEOUT, client.query_typed(&look, &[]))
            .await
            .map_err(|_| Failure::away("the server does not answer"))??;
        let Some(row) = rows.first() else {
            return Err(Failure::Damaged("the table `state` has no row".to_owned()));
        };
        let state = shared.expected.check(State::read(row)?, floor)?;
        *answered = true;
        shared.is_there();
        shared.announce(state.reach);
        if let Ok(None) = timeout(LOOK_EVERY, notified.recv()).await {
            return Err(Failure::away("the connection was closed"));
        }
    }
}
