//! A source: one file of a policy set, the names that are not policies, and how long they may be.

/// The name of the one source that is a route table.
pub const ROUTES_FILE: &str = "routes.toml";
/// The name of the one source that is a table of modules.
pub const MODULES_FILE: &str = "modules.toml";
/// The name of the one source that selects headers.
pub const HEADERS_FILE: &str = "headers.toml";

/// The folder that is nobody's module: the policies of break-glass grants, which are made from signed grants and stand
/// beside the files of people. Ids that begin with it are theirs.
pub const BREAK_GLASS_MODULE: &str = "break-glass";

/// The longest name of a source, its folder included.
pub const FILE_NAME_BYTES_MAX: usize = 255;
/// The most text of all sources together: some 100 000 policies of 300 bytes, and no less than a bundle carries.
pub const TOTAL_BYTES_MAX: usize = 32 * 1024 * 1024;

/// One file of policies (`file.cedar`, or `module/file.cedar`), the route table (`routes.toml`), the table of modules
/// (`modules.toml`), or the headers that are selected (`headers.toml`).
#[derive(Debug, Clone)]
pub struct Source {
    /// The file's name, unique within a snapshot.
    pub name: String,
    /// All of its text.
    pub text: String,
}
