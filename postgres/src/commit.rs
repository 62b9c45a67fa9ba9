//! One commit: lock the row, look, write, let go. Four round trips, of which the lock is held for the last three.

use std::collections::{BTreeMap, BTreeSet};

use hoplite_store::{
    Batch, CommitError, HISTORY_BYTES_MAX, LargeId, Mutation, Reach, Revision, StoreError, Versioned, Write,
};
use tokio_postgres::types::Type;

use crate::failure::Failure;
use crate::rows::{self, Row};
use crate::schema::{STATE, State};
use crate::session::{Parameters, Session};

const NAME: &str = "INSERT INTO named (key, id) SELECT DISTINCT key, id FROM unnest($1, $2) AS new (key, id)";

/// Drops what is too old or too much of history, and says where the store stands.
const STAND: &str = "
    WITH kept AS (SELECT greatest($1, (SELECT coalesce(min(revision), $3) FROM change WHERE history > $2)) AS oldest),
        dropped AS (DELETE FROM change WHERE revision < (SELECT oldest FROM kept))
    UPDATE state SET revision = $3, oldest = (SELECT oldest FROM kept), items = $4, digest = $5, history = $6
    RETURNING oldest";

/// What is there of the keys that a batch speaks of.
struct Seen {
    /// The commit that wrote each, and its checksum.
    keys: BTreeMap<Vec<u8>, (Revision, u32)>,
    large: BTreeSet<LargeId>,
}

/// The rows of one commit, column by column.
#[derive(Default)]
pub(crate) struct Columns {
    keys: Vec<Vec<u8>>,
    values: Vec<Vec<u8>>,
    revisions: Vec<i64>,
    names: Vec<Vec<u8>>,
    checksums: Vec<i64>,
    deleted: Vec<Vec<u8>>,
    /// Keys that name something, and what.
    naming: Vec<Vec<u8>>,
    named: Vec<Vec<u8>>,
}

/// Commits a batch. What is wrong with the batch is an answer; a failure is the server's.
pub(crate) async fn commit(
    session: &Session,
    batch: Batch,
    keep: u64,
) -> Result<Result<(State, Reach), CommitError>, Failure> {
    let client = &session.client;
    let lock = format!("SELECT {STATE} FROM state s FOR UPDATE");
    // One packet: the server takes one after the other.
    let ((), state) = tokio::try_join!(biased; async { Ok(client.batch_execute("BEGIN").await?) }, async {
        session.one(&lock, &[]).await
    })?;
    let before = session.expected(State::read(&state)?)?;
    let seen = look(session, &batch).await?;
    let checked = batch.check(
        |key| Ok(seen.keys.get(key).map(|(revision, _)| *revision)),
        |id| Ok::<_, StoreError>(seen.large.contains(id)),
    );
    let writes = match checked {
        Ok(writes) => writes,
        Err(wrong) => {
            client.batch_execute("ROLLBACK").await?;
            return Ok(Err(wrong));
        }
    };
    let reach = write(session, &before, &seen, writes, keep).await?;
    Ok(Ok((before, reach)))
}

async fn look(session: &Session, batch: &Batch) -> Result<Seen, Failure> {
    let keys: Vec<&[u8]> = batch.keys().collect();
    let large: Vec<&[u8]> = batch.large().map(|id| id.0.as_slice()).collect();
    let keys: &Parameters<'_> = &[(&keys, Type::BYTEA_ARRAY)];
    let large: &Parameters<'_> = &[(&large, Type::BYTEA_ARRAY)];
    let (keys, large) = tokio::try_join!(
        biased;
        session.many("SELECT key, revision, checksum FROM item WHERE key = ANY($1)", keys),
        session.many("SELECT id FROM large WHERE id = ANY($1)", large),
    )?;
    let mut seen = Seen {
        keys: BTreeMap::new(),
        large: BTreeSet::new(),
    };
    for row in keys {
        let revision = row.try_get::<_, i64>(1)?.cast_unsigned();
        let sum = u32::try_from(row.try_get::<_, i64>(2)?)
            .map_err(|_| Failure::Damaged("a checksum is no checksum".to_owned()))?;
        seen.keys.insert(row.try_get(0)?, (revision, sum));
    }
    for row in large {
        let id: Vec<u8> = row.try_get(0)?;
        let id = id
            .try_into()
            .map_err(|_| Failure::Damaged("the name of a large value is none".to_owned()))?;
        seen.large.insert(LargeId(id));
    }
    Ok(seen)
}

/// Writes all of it and commits, in one packet. If a statement fails, the server makes a rollback of the commit behind it, and the
/// error is that statement's: so whoever is told of no error was told of the commit.
async fn write(
    session: &Session,
    before: &State,
    seen: &Seen,
    writes: Vec<Write>,
    keep: u64,
) -> Result<Reach, Failure> {
    let grown = before.reach.grown(keep);
    let revision = grown.newest;
    let mut contents = before.contents;
    let mut columns = Columns::default();
    let mut mutations = Vec::with_capacity(writes.len());
    for Write { mutation, names } in writes {
        let Mutation { key, value } = &mutation;
        if let Some((_, sum)) = seen.keys.get(key) {
            contents.remove(*sum);
        }
        match value {
            Some(value) => {
                let value = value.clone();
                let row = Row::new(key.clone(), Versioned { value, revision, names });
                contents.add(row.sum);
                columns.put(row);
            }
            None => columns.deleted.push(key.clone()),
        }
        mutations.push(mutation);
    }
    let history = before.history.wrapping_add(rows::change_bytes(&mutations) as u64);
    let change = rows::encode_change(revision, &mutations);
    let at = revision.cast_signed();
    let (floor, total) = (grown.oldest.cast_signed(), history.cast_signed());
    // What was there when this much was not yet written is too much; the newest one stays.
    let too_old = history.saturating_sub(HISTORY_BYTES_MAX as u64).cast_signed();
    let (items, digest) = (contents.count.cast_signed(), contents.sum.cast_signed());
    let written: &Parameters<'_> = &[(&columns.keys, Type::BYTEA_ARRAY)];
    let deleted: &Parameters<'_> = &[(&columns.deleted, Type::BYTEA_ARRAY)];
    let named: &Parameters<'_> = &[
        (&columns.naming, Type::BYTEA_ARRAY),
        (&columns.named, Type::BYTEA_ARRAY),
    ];
    let kept: &Parameters<'_> = &[(&at, Type::INT8), (&change, Type::BYTEA), (&total, Type::INT8)];
    let standing: &Parameters<'_> = &[
        (&floor, Type::INT8),
        (&too_old, Type::INT8),
        (&at, Type::INT8),
        (&items, Type::INT8),
        (&digest, Type::INT8),
        (&total, Type::INT8),
    ];
    let told: &Parameters<'_> = &[(&session.channel, Type::TEXT)];
    let statements = async {
        tokio::try_join!(
            biased;
            session.run("DELETE FROM named WHERE key = ANY($1)", written),
            session.run("DELETE FROM item WHERE key = ANY($1)", deleted),
            columns.write(session),
            session.run(NAME, named),
            session.run("INSERT INTO change (revision, mutations, history) VALUES ($1, $2, $3)", kept),
            session.one(STAND, standing),
            session.run("SELECT pg_notify($1, '')", told),
            async { Ok(session.client.batch_execute("COMMIT").await?) },
        )
    };
    let (_, _, _, _, _, state, _, ()) = statements.await.map_err(Failure::sent)?;
    let oldest = state.try_get::<_, i64>(0)?.cast_unsigned();
    Ok(Reach {
        oldest,
        newest: revision,
    })
}

// === impl Columns ===

impl Columns {
    /// Puts what was put, in the place of what is there.
    pub(crate) async fn write(&self, session: &Session) -> Result<(), Failure> {
        let sql = "INSERT INTO item (key, value, revision, names, checksum) SELECT * FROM unnest($1, $2, $3, $4, $5) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision, names = excluded.names, \
             checksum = excluded.checksum";
        let parameters: &Parameters<'_> = &[
            (&self.keys, Type::BYTEA_ARRAY),
            (&self.values, Type::BYTEA_ARRAY),
            (&self.revisions, Type::INT8_ARRAY),
            (&self.names, Type::BYTEA_ARRAY),
            (&self.checksums, Type::INT8_ARRAY),
        ];
        session.run(sql, parameters).await
    }

    pub(crate) fn put(&mut self, row: Row) {
        for id in &row.versioned.names {
            self.naming.push(row.key.clone());
            self.named.push(id.0.to_vec());
        }
        self.names.push(rows::encode_names(&row.versioned.names));
        self.checksums.push(i64::from(row.sum));
        self.revisions.push(row.versioned.revision.cast_signed());
        self.keys.push(row.key);
        self.values.push(row.versioned.value);
    }
}
