//! What every exporter says of its process, under the names that everybody knows: read from `/proc/self`.

use std::fs;

use hoplite_host::process::descriptors_max;
use rustix::param::{clock_ticks_per_second, page_size};

use crate::sampled::{Families, Kind};

/// Adds them.
pub(crate) fn register(families: &mut Families<'_>) {
    families.sampled(
        Kind::Counter,
        "process_cpu_seconds",
        "Processor time used, in user and kernel mode",
        |to| {
            if let Some(stat) = Stat::read() {
                to.put_real(stat.cpu_seconds());
            }
        },
    );
    families.sampled(
        Kind::Gauge,
        "process_resident_memory_bytes",
        "Memory that is resident",
        |to| {
            if let Some(stat) = Stat::read() {
                to.put(stat.number(23).saturating_mul(page_size() as u64));
            }
        },
    );
    families.sampled(Kind::Gauge, "process_virtual_memory_bytes", "Address space", |to| {
        if let Some(stat) = Stat::read() {
            to.put(stat.number(22));
        }
    });
    families.sampled(Kind::Gauge, "process_threads", "Threads", |to| {
        if let Some(stat) = Stat::read() {
            to.put(stat.number(19));
        }
    });
    families.sampled(
        Kind::Gauge,
        "process_start_time_seconds",
        "When the process began, in seconds since 1970",
        |to| {
            if let Some(start) = Stat::read().and_then(|stat| stat.start_seconds()) {
                to.put_real(start);
            }
        },
    );
    families.sampled(Kind::Gauge, "process_open_fds", "Open descriptors", |to| {
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One of them reads the directory.
            to.put((open.count() as u64).saturating_sub(1));
        }
    });
    families.sampled(
        Kind::Gauge,
        "process_max_fds",
        "Descriptors that the system gives",
        |to| {
            to.put(descriptors_max() as u64);
        },
    );
}

/// `/proc/self/stat`, what stands behind the command's name (proc(5)).
struct Stat(String);

// === impl Stat ===

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The name may hold anything, parentheses too.
        Some(Self(text.rsplit_once(')')?.1.to_owned()))
    }

    /// The field of this number, where the command is number 1.
    fn number(&self, field: usize) -> u64 {
        let text = self.0.split_ascii_whitespace().nth(field.saturating_sub(2));
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn cpu_seconds(&self) -> f64 {
        (self.number(13) + self.number(14)) as f64 / clock_ticks_per_second() as f64
    }

    /// The field says it since the boot.
    fn start_seconds(&self) -> Option<f64> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        let boot: u64 = boot.trim().parse().ok()?;
        Some(boot as f64 + self.number(21) as f64 / clock_ticks_per_second() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_this_process() {
        let stat = Stat::read().unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap();
        assert!(stat.number(19) >= 1 && threads.trim().parse::<u64>().unwrap() >= 1);
        let rss = stat.number(23) * page_size() as u64;
        assert!((1 << 20..1 << 34).contains(&rss), "{rss}");
        let start = stat.start_seconds().unwrap();
        let now = hoplite_host::clock::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let age = now.as_secs_f64() - start;
        assert!((-2.0..600.0).contains(&age), "{age}");
    }
}
