//! The recorded logs, unpacked below target/.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// podsecd's binary.
pub(crate) const PODSECD: &str = env!("CARGO_BIN_EXE_podsecd");
/// podsecctl's binary.
pub(crate) const PODSECCTL: &str = env!("CARGO_BIN_EXE_podsecctl");

/// How often the successes are repeated in the sparse log: about 400 MB.
const REPEATS: usize = 3;
/// One line in so many is a refusal in the sparse log.
const ONE_IN: usize = 50;

/// audit-large.log: 184,276 lines, 48 % of them refusals.
pub(crate) fn large() -> Result<PathBuf, String> {
    made("audit-large.log", |path| {
        let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/audit/audit-large.log.xz");
        let output = File::create(path).map_err(|error| error.to_string())?;
        let status = Command::new("xz").arg("-dc").arg(packed).stdout(output).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("xz: {status}")),
            Err(error) => Err(format!("xz does not run: {error}")),
        }
    })
}

/// The lines of audit-large.log, so mixed that one in fifty is a refusal.
pub(crate) fn sparse() -> Result<PathBuf, String> {
    let large = large()?;
    made("audit-sparse.log", |path| mix(&large, path).map_err(|error| error.to_string()))
}

fn mix(large: &Path, path: &Path) -> std::io::Result<()> {
    let (mut successes, mut refusals) = (Vec::new(), Vec::new());
    for line in BufReader::new(File::open(large)?).split(b'\n') {
        let line = line?;
        let refused = [&br#""code":4"#[..], br#""code":5"#].iter().any(|code| line.windows(8).any(|at| at == *code));
        if refused { refusals.push(line) } else { successes.push(line) }
    }
    let mut out = BufWriter::new(File::create(path)?);
    let mut next_refusal = refusals.iter().cycle();
    for (index, line) in std::iter::repeat_n(&successes, REPEATS).flatten().enumerate() {
        out.write_all(line)?;
        out.write_all(b"\n")?;
        if (index + 1) % (ONE_IN - 1) == 0
            && let Some(refusal) = next_refusal.next()
        {
            out.write_all(refusal)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()
}

/// A file of the cache; made under another name first, so that it is whole once it is there.
fn made(name: &str, make: impl FnOnce(&Path) -> Result<(), String>) -> Result<PathBuf, String> {
    let directory = cache()?;
    let path = directory.join(name);
    if !path.exists() {
        let unfinished = directory.join(format!("{name}.new"));
        make(&unfinished)?;
        fs::rename(&unfinished, &path).map_err(|error| error.to_string())?;
    }
    Ok(path)
}

/// The directory below target/.
fn cache() -> Result<PathBuf, String> {
    let target = Path::new(PODSECD).ancestors().nth(2).ok_or("no target directory")?;
    let directory = target.join("bench-data");
    fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    Ok(directory)
}

/// Whether a program can be run.
pub(crate) fn needs(program: &str) -> Result<(), String> {
    match Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("{program} is not installed")),
    }
}
