//! Checks a log directory: every frame, every checksum, every link of the chain, every sequence number.

use std::path::Path;

/// One thing that is wrong, and where: names the segment and, where there is one, the decision id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding { pub segment: String, pub id: Option<String>, pub problem: String }

#[derive(Debug, Clone)]
pub struct Report { pub records: u64, pub segments: u64, pub boots: u64, pub findings: Vec<Finding>, /// bytes of an unfinished last record: normal after a crash
    pub torn_bytes: u64 }

pub fn verify_log(dir: &Path) -> std::io::Result<Report> { todo!() }
