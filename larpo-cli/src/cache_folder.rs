//! Where files are kept that may be lost: tokenised data, and what was measured of a GPU.

use std::ffi::OsString;
use std::path::PathBuf;

/// larpo's folder in the user's cache folder; none where the environment names no such folder.
pub fn larpo() -> Option<PathBuf> {
    user_folder(|name| std::env::var_os(name)).map(|folder| folder.join("larpo"))
}

/// The user's cache folder by the custom of the platform.
fn user_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        folder("HOME").map(|home| home.join("Library/Caches"))
    } else {
        folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_follows_the_platform() {
        let with = |pairs: &'static [(&str, &str)]| {
            user_folder(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).into()))
        };
        if cfg!(target_os = "linux") {
            assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x".into()));
            assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "relative")]), Some("/h/.cache".into()));
        }
        assert_eq!(with(&[]), None);
    }
}
