//! A connection that is ours, and the store that is expected behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hoplite_store::Revision;
use tokio::sync::mpsc;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Row};

use crate::connect::Connector;
use crate::failure::Failure;
use crate::schema::State;

/// Parameters of a statement, with their types.
pub(crate) type Parameters<'a> = [(&'a (dyn ToSql + Sync), Type)];

/// The store that was opened: no other, and never an older one.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) id: String,
    pub(crate) seen: AtomicU64,
    /// It is being filled by a restore, by us.
    pub(crate) is_unfinished: bool,
}

/// A connection with our settings.
pub(crate) struct Session {
    pub(crate) client: Client,
    /// Where commits are told of.
    pub(crate) channel: String,
    expected: Arc<Expected>,
    /// What was seen when the statement that runs was begun.
    floor: AtomicU64,
}

/// Connects, and lets the driver run until the session is dropped. Whoever gives a sender is told of notifications.
pub(crate) async fn open(connector: &Connector, notified: Option<mpsc::Sender<()>>) -> Result<Client, Failure> {
    let (client, mut driver) = connector.connect().await?;
    tokio::spawn(async move {
        // Its end, whatever the reason, is seen by whoever asks the client next.
        while let Some(Ok(message)) = std::future::poll_fn(|cx| driver.poll_message(cx)).await {
            if let (AsyncMessage::Notification(_), Some(notified)) = (message, &notified) {
                // One that waits is enough: it carries nothing.
                let _ = notified.try_send(());
            }
        }
    });
    connector.settle(&client).await?;
    Ok(client)
}

/// Where commits of a schema are told of.
pub(crate) fn channel(schema: &str) -> String {
    format!("hoplite_{schema}")
}

// === impl Session ===

impl Session {
    pub(crate) async fn open(connector: &Connector, expected: Arc<Expected>) -> Result<Self, Failure> {
        Ok(Self {
            client: open(connector, None).await?,
            channel: channel(&connector.settings.schema),
            expected,
            floor: AtomicU64::new(0),
        })
    }

    /// Before a piece of work: what it reads is not older than what was seen until now.
    pub(crate) fn begin(&self) {
        self.floor
            .store(self.expected.seen.load(Ordering::Acquire), Ordering::Release);
    }

    /// The state, if it is the store's that was opened and not an older one.
    pub(crate) fn expected(&self, state: State) -> Result<State, Failure> {
        self.expected.check(state, self.floor.load(Ordering::Acquire))
    }

    pub(crate) async fn many(&self, sql: &str, parameters: &Parameters<'_>) -> Result<Vec<Row>, Failure> {
        Ok(self.client.query_typed(sql, parameters).await?)
    }

    pub(crate) async fn one(&self, sql: &str, parameters: &Parameters<'_>) -> Result<Row, Failure> {
        let rows = self.many(sql, parameters).await?;
        let row = rows.into_iter().next();
        row.ok_or_else(|| Failure::Damaged("the table `state` has no row".to_owned()))
    }

    pub(crate) async fn run(&self, sql: &str, parameters: &Parameters<'_>) -> Result<(), Failure> {
        self.many(sql, parameters).await.map(drop)
    }
}

// === impl Expected ===

impl Expected {
    pub(crate) fn check(&self, state: State, floor: Revision) -> Result<State, Failure> {
        let state = if self.is_unfinished { state } else { state.finished()? };
        if state.id != self.id {
            return Err(Failure::Another(format!(
                "it is another store ({}) than the one that was opened ({})",
                state.id, self.id
            )));
        }
        if state.reach.newest < floor {
            return Err(Failure::Another(format!(
                "it is at revision {}, and has been at {floor}: an older copy took its place",
                state.reach.newest
            )));
        }
        Ok(state)
    }
}
