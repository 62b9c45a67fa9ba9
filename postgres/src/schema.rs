//! Our tables, and the row that says which store this is and where it stands.

use hoplite_store::{Reach, Revision};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use crate::failure::Failure;
use crate::rows::Digest;

/// Changes when the tables do; an unknown one is refused.
const FORMAT: i32 = 1;

/// While a restore fills it: no store that anybody opens.
const UNFINISHED: i32 = 0;

/// Two that found it at once: the second waits. The number means nothing but ours.
const FOUNDING: &str = "SELECT pg_advisory_xact_lock(8097345566210433)";

const TABLES: &str = "
    CREATE TABLE state (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        format integer NOT NULL,
        id uuid NOT NULL DEFAULT gen_random_uuid(),
        revision bigint NOT NULL DEFAULT 0,
        oldest bigint NOT NULL DEFAULT 1,
        items bigint NOT NULL DEFAULT 0,
        digest bigint NOT NULL DEFAULT 0,
        history bigint NOT NULL DEFAULT 0
    );
    CREATE TABLE item (
        key bytea PRIMARY KEY,
        value bytea NOT NULL,
        revision bigint NOT NULL,
        names bytea NOT NULL,
        checksum bigint NOT NULL
    );
    CREATE TABLE change (
        revision bigint PRIMARY KEY,
        mutations bytea NOT NULL,
        history bigint NOT NULL
    );
    CREATE TABLE large (
        id bytea PRIMARY KEY,
        bytes bytea NOT NULL,
        put_at bigint NOT NULL
    );
    CREATE TABLE named (
        key bytea NOT NULL REFERENCES item ON DELETE CASCADE,
        id bytea NOT NULL REFERENCES large,
        PRIMARY KEY (key, id)
    );
    CREATE INDEX named_id ON named (id);
";

/// The columns that [`State::read`] reads, in its order.
pub(crate) const STATE: &str = "s.format, s.id::text, s.revision, s.oldest, s.items, s.digest, s.history";

/// How many there are of [`STATE`].
pub(crate) const STATE_COLUMNS: usize = 7;

/// Which store this is and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// Random; a restore makes another.
    pub(crate) id: String,
    pub(crate) reach: Reach,
    pub(crate) contents: Digest,
    /// The bytes of all changes there ever were.
    pub(crate) history: u64,
    is_finished: bool,
}

// === impl State ===

impl State {
    /// Of a row that begins with [`STATE`].
    pub(crate) fn read(row: &Row) -> Result<Self, Failure> {
        let number = |at: usize| -> Result<u64, Failure> { Ok(row.try_get::<_, i64>(at)?.cast_unsigned()) };
        let format: i32 = row.try_get(0)?;
        if ![FORMAT, UNFINISHED].contains(&format) {
            return Err(Failure::Refused {
                problem: format!("its tables have format {format}, and this version of the program knows {FORMAT}"),
                remedy: "run the program that made them, or name another `schema`",
            });
        }
        Ok(Self {
            id: row.try_get(1)?,
            reach: Reach {
                newest: number(2)?,
                oldest: number(3)?,
            },
            contents: Digest {
                count: number(4)?,
                sum: number(5)?,
            },
            history: number(6)?,
            is_finished: format == FORMAT,
        })
    }

    /// Whether it is a whole store.
    pub(crate) fn finished(self) -> Result<Self, Failure> {
        match self.is_finished {
            true => Ok(self),
            false => Err(Failure::Refused {
                problem: "a restore into it was broken off".to_owned(),
                remedy: "drop the schema, and restore again",
            }),
        }
    }
}

/// Makes schema and tables if they are not there, and says where the store stands.
pub(crate) async fn found(client: &Client, schema: &str, unfinished: bool) -> Result<State, Failure> {
    let is_there_already = is_there(client, schema).await?;
    if is_there_already && unfinished {
        return Err(Failure::Refused {
            problem: "there is a store in it already".to_owned(),
            remedy: "drop the schema if nobody needs it, or name another `schema`",
        });
    }
    if !is_there_already {
        client.batch_execute("BEGIN").await?;
        client.batch_execute(FOUNDING).await?;
        // Somebody may have been faster while we waited.
        if !is_there(client, schema).await? {
            let has_schema = client
                .query_typed(
                    "SELECT 1 FROM pg_namespace WHERE nspname = $1",
                    &[(&schema, Type::TEXT)],
                )
                .await?;
            if has_schema.is_empty() {
                client.batch_execute(&format!("CREATE SCHEMA \"{schema}\"")).await?;
            }
            let format = if unfinished { UNFINISHED } else { FORMAT };
            client
                .batch_execute(&format!("{TABLES} INSERT INTO state (format) VALUES ({format});"))
                .await?;
        }
        client.batch_execute("COMMIT").await?;
    }
    let durable = client.query_typed("SELECT current_setting('fsync')", &[]).await?;
    if durable
        .first()
        .is_some_and(|row| row.try_get::<_, String>(0).is_ok_and(|fsync| fsync != "on"))
    {
        return Err(Failure::Refused {
            problem: "the server runs with `fsync = off`, and a crash would take back what it acknowledged".to_owned(),
            remedy: "set `fsync = on`",
        });
    }
    let rows = client.query_typed(&format!("SELECT {STATE} FROM state s"), &[]).await?;
    let [row] = rows.as_slice() else {
        return Err(Failure::Damaged("the table `state` has no row, or several".to_owned()));
    };
    State::read(row)
}

/// Whether there are tables of ours, whole or not.
pub(crate) async fn is_there(client: &Client, schema: &str) -> Result<bool, Failure> {
    let rows = client
        .query_typed(
            "SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = 'state'",
            &[(&schema, Type::TEXT)],
        )
        .await?;
    Ok(!rows.is_empty())
}

/// A filled store begins here, as another one than it was.
pub(crate) fn finish(revision: Revision, contents: Digest) -> String {
    format!(
        "UPDATE state SET format = {FORMAT}, id = gen_random_uuid(), revision = {revision}, oldest = {}, items = {}, digest = {}",
        revision + 1,
        contents.count.cast_signed(),
        contents.sum.cast_signed(),
    )
}
