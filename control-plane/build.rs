//! Puts the admin UI, as it was built, where the program embeds it from; without one, a page that says how to build it.
//! A file that the build has also written compressed is embedded in its compressed forms only.

use std::path::Path;
use std::{env, fs, io};

const PLACEHOLDER: &str = "<!doctype html><meta charset=utf-8><title>Signalbox</title>\
<h1>Signalbox</h1><p>This control plane was built without the admin UI. Build it with <code>make ui</code>, \
then build the control plane again. The API is at <a href=/api/v1/openapi.json>/api/v1</a>.</p>\n";

fn main() -> io::Result<()> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?).join("../admin-ui");
    let target = Path::new(&env::var("OUT_DIR").map_err(io::Error::other)?).join("ui");
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    fs::create_dir_all(&target)?;
    let built = root.join("dist");
    if built.join("index.html").exists() {
        println!("cargo::rerun-if-changed={}", built.display());
        copy(&built, &target)
    } else {
        // A path that is not there would run this script at every build; what is built next to these shows as a change
        // of the directory.
        println!("cargo::rerun-if-changed=build.rs");
        if root.exists() {
            println!("cargo::rerun-if-changed={}", root.display());
        }
        fs::write(target.join("index.html"), PLACEHOLDER)
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            copy(&entry.path(), &target)?;
        } else if !is_compressed_beside(&entry.path()) {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn is_compressed_beside(file: &Path) -> bool {
    ["br", "gz"].iter().all(|extension| {
        let mut name = file.as_os_str().to_owned();
        name.push(".");
        name.push(extension);
        Path::new(&name).exists()
    })
}
