//! Reading records back.
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use crate::{DecisionId, Outcome, Record};

/// What to look for; everything given must match.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pub since: Option<SystemTime>, pub until: Option<SystemTime>,
    pub principal: Option<String>, // exact, or a prefix that ends in `/`
    pub service: Option<String>, pub route: Option<String>, pub outcome: Vec<Outcome>, pub policy: Option<String>, pub id: Option<DecisionId>,
}
impl Query { pub fn matches(&self, record: &Record) -> bool { todo!() } }

#[derive(Debug, thiserror::Error)]
pub enum ReadError { #[error("{0}")] Other(String) }

pub fn find_logs(root: &Path) -> Result<Vec<PathBuf>, ReadError> { todo!() }
pub fn read_log(dir: &Path, query: &Query) -> Result<impl Iterator<Item = Result<Record, ReadError>> + use<>, ReadError> { Ok(std::iter::empty()) }
pub struct Tail { /* helper */ }
impl Tail { pub fn open(dir: &Path, from_end: bool) -> Result<Self, ReadError> { todo!() } pub fn poll(&mut self) -> Result<Vec<Record>, ReadError> { todo!() } }
