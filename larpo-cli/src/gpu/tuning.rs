//! Which kernels were found to be the fastest on an adapter, kept in the user's cache folder for later runs.

use crate::cache_folder;
use larpo_data::files;
use larpo_gpu::Gpu;
use larpo_gpu::kernels::tuning::Tuning;
use std::fs;
use std::path::Path;

/// From here on products on `gpu` take what is the fastest there ([`Gpu::autotune`]). A CPU adapter, for which one kernel was
/// written, is left as it is.
pub fn tune(gpu: &Gpu) {
    if !gpu.is_cpu() {
        match cache_folder::larpo() {
            Some(folder) => remember(gpu, &folder.join("tuning")),
            None => gpu.autotune(Tuning::default(), |_| ()),
        }
    }
}

/// From here on products on `gpu` take what is the fastest there, and `folder` has it for the next run.
pub fn remember(gpu: &Gpu, folder: &Path) {
    let key = Tuning::key(gpu);
    // Adapters, drivers and versions of the kernels have files of their own, whose names people recognise.
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let (adapter, kernels) = key.rsplit_once(' ').unwrap_or_default();
    let name: String = adapter.chars().take(150).map(word).collect();
    let (folder, path) = (folder.to_path_buf(), folder.join(format!("{}-{kernels}.txt", name.trim_matches('-'))));
    let read = |path: &Path, key: &str| -> Tuning {
        let text = fs::read_to_string(path).unwrap_or_default();
        Tuning::from_text(&text, key).unwrap_or_default()
    };
    let known = read(&path, &key);
    debug!("autotune: {} kinds of products are known in {}", known.len(), path.display());
    gpu.autotune(known, move |known| {
        // Another run may have measured too.
        let mut all = known.clone();
        all.merge(read(&path, &key));
        let text = all.to_text(&key);
        let written = fs::create_dir_all(&folder)
            .map_err(|error| error.to_string())
            .and_then(|()| files::write_bytes(&path, text.as_bytes()).map_err(|error| error.to_string()));
        // It is measured again next time.
        if let Err(error) = written {
            debug!("autotune: {error}");
        }
    });
}
