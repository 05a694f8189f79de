//! A registry on loopback: Debian's docker-registry.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::wait_until;

/// A running registry; it is killed when it is dropped.
pub(super) struct Registry {
    process: Child,
    /// Its address: what comes first in the names of its images.
    pub(super) address: String,
}

impl Registry {
    /// Starts one that keeps everything below a directory.
    pub(super) fn start(directory: &Path) -> Registry {
        // Whoever takes the port in between makes the test fail, and nothing else.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let address = format!("127.0.0.1:{port}");
        let configuration = directory.join("registry.yml");
        let store = directory.join("registry");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            store.display()
        );
        std::fs::write(&configuration, text).expect("written");
        let output = File::create(directory.join("registry.log")).expect("made");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&configuration)
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .expect("docker-registry starts");
        let registry = Registry { process, address };
        wait_until("the registry answers", || TcpStream::connect(&registry.address).is_ok());
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
