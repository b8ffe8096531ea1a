//! Passes the commit on as `LARPO_COMMIT`, where there is one: of a packaged crate the one that cargo recorded, of a
//! checkout git's, and with that its day as `LARPO_DATE`. Without either, nothing is passed.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if let Some(commit) = packaged(Path::new(&folder)).or_else(|| checked_out(Path::new(&folder))) {
        println!("cargo::rustc-env=LARPO_COMMIT={commit}");
    }
}

/// The commit in `.cargo_vcs_info.json`, which `cargo package` writes.
fn packaged(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(".cargo_vcs_info.json")).ok()?;
    let commit = text.split("\"sha1\"").nth(1)?.split('"').nth(1)?;
    commit.chars().all(|c| c.is_ascii_hexdigit()).then(|| commit.chars().take(12).collect())
}

/// The commit of the checkout that this crate lies in as larpo-cli; a copy inside another project is none.
fn checked_out(folder: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_string())
    };
    if git(&["rev-parse", "--show-prefix"])? != "larpo-cli/" || !folder.join("../larpo-core").is_dir() {
        return None;
    }
    for file in ["HEAD", "logs/HEAD", "packed-refs"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", file])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    if let Some(day) = git(&["log", "-1", "--format=%cs"]) {
        println!("cargo::rustc-env=LARPO_DATE={day}");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}
