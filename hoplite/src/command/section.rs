//! Parts of a daemon's file that an operator has written into files of their own, for a command that writes the whole.

use std::path::{Path, PathBuf};

use anyhow::bail;
use hoplite_host::{config, files};
use serde_json::Value;

/// The section in this file, as it is; nothing without a file.
pub(crate) fn optional(file: Option<&Path>, name: &str, shown_in: &str) -> anyhow::Result<String> {
    match file {
        Some(file) => Ok(appended(&named(file, name, shown_in)?)),
        None => Ok(String::new()),
    }
}

/// What a file says, which has this section.
pub(crate) fn named(file: &Path, name: &str, shown_in: &str) -> anyhow::Result<String> {
    let text = whole(file)?;
    if !text.lines().any(|line| line.trim() == name) {
        bail!("`{}` has no section `{name}`; {shown_in} shows one", file.display());
    }
    Ok(text)
}

/// As it stands at the end of another file.
pub(crate) fn appended(section: &str) -> String {
    format!("\n{}\n", section.trim())
}

/// What a file says. A daemon looks for a file where it is started, which is not here: a name that is meant from here is refused.
pub(crate) fn whole(file: &Path) -> anyhow::Result<String> {
    let text = files::read_text(file)?;
    let beside = file.parent().unwrap_or(Path::new("."));
    let mut values = vec![config::parse::<Value>(file, &text)?];
    while let Some(value) = values.pop() {
        match value {
            Value::Object(table) => values.extend(table.into_iter().map(|(_, value)| value)),
            Value::Array(array) => values.extend(array),
            Value::String(name) if Path::new(&name).is_relative() && !name.is_empty() => {
                let found = [beside.join(&name), PathBuf::from(&name)];
                if let Some(meant) = found.iter().find(|path| path.is_file()) {
                    let meant = std::path::absolute(meant)?;
                    bail!(
                        "`{}` names the file `{name}`, which the daemon would look for where it is started; write `{}`",
                        file.display(),
                        meant.display()
                    );
                }
            }
            _ => {}
        }
    }
    Ok(text)
}
