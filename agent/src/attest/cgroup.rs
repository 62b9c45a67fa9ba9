//! Where a process is among the control groups: in which unit, container and pod, by the text of `/proc/PID/cgroup`.
//!
//! A process moves into another group only if it may write there: root, or the user to whom systemd has delegated a part of the tree.
//! So a path is read from the root down and only as far as nobody but root has made it: what is below a unit is the unit's own, and
//! may be called whatever its owner likes.

use std::fs::File;
use std::io::Read;

/// The longest text that is read. Real ones have one line, or a dozen.
const TEXT_BYTES_MAX: u64 = 64 << 10;

/// What is read at once.
const TEXT_BYTES: usize = 4 << 10;

/// Digits of a container's id.
const ID_DIGITS: usize = 64;

/// How runtimes call the groups of their containers.
const PREFIXES: [&str; 4] = ["cri-containerd-", "crio-", "docker-", "libpod-"];

/// Where a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Placement {
    /// The unit of the system's systemd.
    pub(super) unit: Option<String>,
    /// The unit of a user's own systemd, with the user's id before it.
    pub(super) user_unit: Option<String>,
    pub(super) container: Option<String>,
    pub(super) pod: Option<String>,
}

/// Why it is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPlacement {
    #[error("its control groups cannot be read: {0}")]
    Unread(String),
    #[error("the agent is in a cgroup namespace of its own, and sees only a part of the tree; run it in the host's")]
    OutOfSight,
    #[error("its control group was removed")]
    Removed,
    #[error("its control groups name different containers")]
    Torn,
}

/// Of a live process.
pub(super) fn of(pid: i32) -> Result<Placement, NoPlacement> {
    let unread = |error: std::io::Error| NoPlacement::Unread(error.to_string());
    let file = File::open(format!("/proc/{pid}/cgroup")).map_err(unread)?;
    // With room for all of nearly any text, which is then read at once: a string that grows begins with 32 bytes.
    let mut text = String::with_capacity(TEXT_BYTES);
    file.take(TEXT_BYTES_MAX).read_to_string(&mut text).map_err(unread)?;
    parse(&text)
}

/// One line for each hierarchy: of version 2 one, `0::PATH`; of version 1 several, of which `name=systemd` is systemd's.
fn parse(text: &str) -> Result<Placement, NoPlacement> {
    let (mut found, mut unit_of) = (Placement::default(), None);
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let one = place(path)?;
        let is_other = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
        if is_other(&found.container, &one.container) || is_other(&found.pod, &one.pod) {
            return Err(NoPlacement::Torn);
        }
        found.container = found.container.or(one.container);
        found.pod = found.pod.or(one.pod);
        match (controllers, unit_of) {
            ("name=systemd", _) | ("", None) => {
                (found.unit, found.user_unit) = (one.unit, one.user_unit);
                unit_of = Some(());
            }
            _ => {}
        }
    }
    Ok(found)
}

fn place(path: &str) -> Result<Placement, NoPlacement> {
    if path.ends_with(" (deleted)") {
        return Err(NoPlacement::Removed);
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.contains(&"..") {
        return Err(NoPlacement::OutOfSight);
    }
    let slices = parts.iter().take_while(|part| part.ends_with(".slice")).count();
    let (slices, below) = parts.split_at(slices);
    let mut found = Placement::default();
    let is_unit = |part: &str| part.ends_with(".service") || part.ends_with(".scope");
    match below {
        [unit, rest @ ..] if is_unit(unit) => {
            found.unit = Some((*unit).to_owned());
            match (slices, *unit) {
                // Groups of containerd with the cgroupfs driver and names as for systemd's.
                (["system.slice"], "containerd.service") => {
                    if let Some((slice, id)) = rest.first().and_then(|name| name.split_once(":cri-containerd:")) {
                        (found.pod, found.container) = (pod_of(slice), id_of(id));
                    }
                }
                (["user.slice", of_user], manager) => found.user_unit = user_unit(of_user, manager, rest),
                (slices, scope) => {
                    let name = scope.strip_suffix(".scope");
                    found.container =
                        name.and_then(|name| PREFIXES.iter().find_map(|prefix| id_of(name.strip_prefix(prefix)?)));
                    found.pod = slices
                        .last()
                        .and_then(|slice| pod_of(slice))
                        .filter(|_| found.container.is_some());
                }
            }
        }
        // The cgroupfs driver: groups that a runtime, as root, has made beside systemd's.
        [] => {}
        below if slices.is_empty() => (found.pod, found.container) = by_runtime(below),
        // cri-o with systemd's slices and groups of its own.
        [name, ..] => {
            found.pod = slices.last().and_then(|slice| pod_of(slice));
            found.container = found
                .pod
                .as_ref()
                .and_then(|_| id_of(name.strip_prefix("crio-").unwrap_or(name)));
        }
    }
    Ok(found)
}

/// Below `user.slice`: `user-1000.slice/user@1000.service/app.slice/sync.service`.
fn user_unit(of_user: &str, manager: &str, below: &[&str]) -> Option<String> {
    let uid = of_user.strip_prefix("user-")?.strip_suffix(".slice")?;
    if manager.strip_prefix("user@")?.strip_suffix(".service")? != uid {
        return None;
    }
    let unit = below.iter().find(|part| !part.ends_with(".slice"))?;
    (unit.ends_with(".service") || unit.ends_with(".scope")).then(|| format!("{uid}/{unit}"))
}

/// `/docker/ID`, `/libpod_parent/libpod-ID`, `/kubepods/burstable/podUID/ID`, and the last below `/kubelet`.
fn by_runtime(parts: &[&str]) -> (Option<String>, Option<String>) {
    match parts {
        ["docker", id, ..] => (None, id_of(id)),
        ["libpod_parent", name, ..] => (None, name.strip_prefix("libpod-").and_then(id_of)),
        ["kubelet", rest @ ..] if rest.first() == Some(&"kubepods") => by_runtime(rest),
        ["kubepods", "burstable" | "besteffort", pod, name, ..] | ["kubepods", pod, name, ..] => {
            let pod = pod.strip_prefix("pod").and_then(uid_of);
            let id = id_of(name.strip_prefix("crio-").unwrap_or(name)).filter(|_| pod.is_some());
            (pod, id)
        }
        _ => (None, None),
    }
}

/// `kubepods-burstable-podUID.slice`, also below another name of the kubelet's; in a slice's name `_` stands for `-`.
fn pod_of(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    let (before, uid) = name.rsplit_once("-pod")?;
    let is_kubelets = before.split('-').any(|part| part == "kubepods");
    uid_of(&uid.replace('_', "-")).filter(|_| is_kubelets)
}

fn uid_of(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f' | b'-');
    (!text.is_empty() && text.bytes().all(plain)).then(|| text.to_owned())
}

fn id_of(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
    (text.len() == ID_DIGITS && text.bytes().all(plain)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f0a6e2c-6f9a-4a0c-9e0e-5f8f7b1d2c3a";
    const SLICED: &str = "0f0a6e2c_6f9a_4a0c_9e0e_5f8f7b1d2c3a";

    fn id() -> String {
        "c0ffee00".repeat(8)
    }

    /// `unit=… user=… container=… pod=…` of what there is.
    fn seen(text: &str) -> String {
        let text = text
            .replace("{id}", &id())
            .replace("{uid}", UID)
            .replace("{sliced}", SLICED);
        match parse(&text) {
            Err(error) => error.to_string(),
            Ok(found) => {
                let short = |name: &str, value: Option<String>| value.map(|value| format!("{name}={value}"));
                let all = [
                    short("unit", found.unit),
                    short("user", found.user_unit),
                    short(
                        "container",
                        found.container.map(|container| container.replace(&id(), "ID")),
                    ),
                    short("pod", found.pod.map(|pod| pod.replace(UID, "UID"))),
                ];
                let all: Vec<String> = all.into_iter().flatten().collect();
                all.join(" ").replace(&id(), "ID")
            }
        }
    }

    #[test]
    fn layouts_of_systemd_docker_containerd_crio_and_podman() {
        let check = |text: &str, expected: &str| assert_eq!(seen(text), expected, "{text}");
        // systemd
        check("0::/system.slice/nginx.service\n", "unit=nginx.service");
        check(
            "0::/system.slice/system-getty.slice/getty@tty1.service\n",
            "unit=getty@tty1.service",
        );
        check("0::/init.scope\n", "unit=init.scope");
        check("0::/system.slice/a.service/workers/b.service\n", "unit=a.service");
        check(
            "0::/user.slice/user-1000.slice/session-3.scope\n",
            "unit=session-3.scope",
        );
        check(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service\n",
            "unit=user@1000.service user=1000/sync.service",
        );
        check("0::/\n", "");
        check("", "");
        check(
            "12:pids:/system.slice/nginx.service\n1:name=systemd:/system.slice/nginx.service\n0::/system.slice/nginx.service\n",
            "unit=nginx.service",
        );
        check(
            "1:name=systemd:/system.slice/nginx.service\n0::/\n",
            "unit=nginx.service",
        );
        check(
            "0::/\n1:name=systemd:/system.slice/nginx.service\n",
            "unit=nginx.service",
        );
        // docker
        check(
            "0::/system.slice/docker-{id}.scope\n",
            "unit=docker-ID.scope container=ID",
        );
        check("0::/docker/{id}\n", "container=ID");
        check(
            "4:memory:/docker/{id}\n3:cpu,cpuacct:/docker/{id}\n1:name=systemd:/docker/{id}\n",
            "container=ID",
        );
        check(
            "0::/system.slice/docker-{id}.scope/kubelet/kubepods/pod{uid}/{id}\n",
            "unit=docker-ID.scope container=ID",
        );
        // containerd
        check(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{sliced}.slice/cri-containerd-{id}.scope\n",
            "unit=cri-containerd-ID.scope container=ID pod=UID",
        );
        check(
            "0::/kubepods.slice/kubepods-pod{sliced}.slice/cri-containerd-{id}.scope\n",
            "unit=cri-containerd-ID.scope container=ID pod=UID",
        );
        check("0::/kubepods/besteffort/pod{uid}/{id}\n", "container=ID pod=UID");
        check("0::/kubepods/pod{uid}/{id}\n", "container=ID pod=UID");
        check(
            "0::/system.slice/containerd.service/kubepods-besteffort-pod{sliced}.slice:cri-containerd:{id}\n",
            "unit=containerd.service container=ID pod=UID",
        );
        check(
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{sliced}.slice/cri-containerd-{id}.scope\n",
            "unit=cri-containerd-ID.scope container=ID pod=UID",
        );
        check("0::/kubelet/kubepods/burstable/pod{uid}/{id}\n", "container=ID pod=UID");
        check(
            "9:pids:/kubepods/burstable/pod{uid}/{id}\n1:name=systemd:/kubepods/burstable/pod{uid}/{id}\n",
            "container=ID pod=UID",
        );
        // cri-o
        check(
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{sliced}.slice/crio-{id}.scope\n",
            "unit=crio-ID.scope container=ID pod=UID",
        );
        check(
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{sliced}.slice/crio-{id}.scope/container\n",
            "unit=crio-ID.scope container=ID pod=UID",
        );
        check("0::/kubepods/burstable/pod{uid}/crio-{id}\n", "container=ID pod=UID");
        check(
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{sliced}.slice/crio-conmon-{id}.scope\n",
            "unit=crio-conmon-ID.scope",
        );
        // podman, as root
        check(
            "0::/machine.slice/libpod-{id}.scope/container\n",
            "unit=libpod-ID.scope container=ID",
        );
        check("0::/libpod_parent/libpod-{id}\n", "container=ID");
    }

    /// Whoever has a part of the tree calls what is in it as he likes.
    #[test]
    fn names_below_what_is_delegated_count_for_nothing() {
        let check = |text: &str, expected: &str| assert_eq!(seen(text), expected, "{text}");
        let user = "0::/user.slice/user-1000.slice/user@1000.service";
        for imitated in [
            "/system.slice/nginx.service",
            "/docker/{id}",
            "/app.slice/docker-{id}.scope",
            "/kubepods.slice/kubepods-pod{sliced}.slice/cri-containerd-{id}.scope",
        ] {
            let found = seen(&format!("{user}{imitated}\n"));
            assert!(found.starts_with("unit=user@1000.service"), "{found}");
            assert!(
                !found.contains("unit=nginx") && !found.contains(" container=") && !found.contains(" pod="),
                "{found}"
            );
        }
        check(
            "0::/user.slice/user-1000.slice/user@0.service/app.slice/sync.service\n",
            "unit=user@0.service",
        );
        check("0::/system.slice/a.service/docker/{id}\n", "unit=a.service");
        check(
            "0::/system.slice/a.service/system.slice/nginx.service\n",
            "unit=a.service",
        );
        check(
            "0::/system.slice/a.service/kubepods-pod{sliced}.slice:cri-containerd:{id}\n",
            "unit=a.service",
        );
        check("0::/mine/docker/{id}\n", "");
        check("0::/docker/{id}x\n", "");
        check("0::/docker/..%2f{id}\n", "");
        check("0::/kubepods.slice/docker-C0FFEE.scope\n", "unit=docker-C0FFEE.scope");
        check(
            "0::/other.slice/other-pod{sliced}.slice/cri-containerd-{id}.scope\n",
            "unit=cri-containerd-ID.scope container=ID",
        );
    }

    #[test]
    fn what_is_not_seen_whole_is_not_known() {
        let check = |text: &str, expected: &str| assert!(seen(text).contains(expected), "{text}: {}", seen(text));
        check("0::/../../system.slice/nginx.service\n", "cgroup namespace of its own");
        check("0::/system.slice/nginx.service (deleted)\n", "was removed");
        let other = "deadbeef".repeat(8);
        check(
            &format!("4:memory:/docker/{{id}}\n1:name=systemd:/docker/{other}\n"),
            "different containers",
        );
        assert!(of(i32::MAX).is_err());
        of(i32::try_from(std::process::id()).unwrap()).unwrap();
    }
}
