//! What every store must pass: the conformance suite, and the crash suite by two deaths, the process's and the server's.

use std::process::Command;

use hoplite_postgres::testing::{self, Server};
use hoplite_postgres::{PostgresStore, Settings};
use hoplite_store::conformance::KEEP;
use hoplite_store::{Store, crash};

use crate::{own, shared};

hoplite_store::conformance!(conformance, {
    let Some(own) = shared("conformance") else { return };
    move || -> Box<dyn Store> { Box::new(PostgresStore::open_keeping(&own.server.settings(), KEEP).unwrap()) }
});

const HOST: &str = "HOPLITE_POSTGRES_CRASH_HOST";
const SCHEMA: &str = "crash";

fn settings(host: &str) -> Settings {
    Settings {
        hosts: vec![host.parse().unwrap()],
        database: "postgres".into(),
        user: "hoplite".into(),
        schema: SCHEMA.into(),
        password_file: None,
        tls: hoplite_postgres::Tls::None,
        tls_ca: None,
    }
}

/// The process that is killed; does nothing in an ordinary run.
#[test]
fn child() {
    if let Ok(host) = std::env::var(HOST) {
        crash::commit_for_ever(&PostgresStore::open(&settings(&host)).unwrap());
    }
}

/// A process that commits to this server for ever.
pub(crate) fn committing(server: &Server) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "suites::child", "--nocapture", "--test-threads=1"]);
    command.env(HOST, format!("127.0.0.1:{}", server.port()));
    command
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    if !testing::possible("nothing_acknowledged_is_lost_when_the_process_is_killed") {
        return;
    }
    let own = own("");
    crash::nothing_acknowledged_is_lost(
        &mut || committing(&own.server),
        &mut |child| child.kill().unwrap(),
        &mut || {
            // The server learns of the death a moment later, and finishes what it was sent.
            let theirs = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hoplite-ca'";
            while own.server.sql(theirs) != "0" {}
            Box::new(PostgresStore::open(&own.server.settings_of(SCHEMA)).unwrap())
        },
    );
}

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    if !testing::possible("nothing_acknowledged_is_lost_when_the_server_is_killed") {
        return;
    }
    let own = std::cell::RefCell::new(own(""));
    let port = own.borrow().server.port();
    crash::nothing_acknowledged_is_lost(
        &mut || committing(&own.borrow().server),
        &mut |child| {
            own.borrow_mut().server.kill();
            let _ = child.kill();
        },
        &mut || {
            own.borrow_mut().server.begin();
            Box::new(PostgresStore::open(&settings(&format!("127.0.0.1:{port}"))).unwrap())
        },
    );
}
