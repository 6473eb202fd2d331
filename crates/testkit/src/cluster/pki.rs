//! Keys, certificates and tokens of one cluster, made with openssl in a tenth of a second.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::host::command;

/// The directory with everything in it.
#[derive(Debug, Clone)]
pub(super) struct Pki {
    dir: PathBuf,
}

/// Who asks the API server for something, by a token of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) token: String,
    pub(super) group: Option<&'static str>,
}

impl User {
    pub(super) fn new(name: impl Into<String>, group: Option<&'static str>) -> Self {
        Self {
            name: name.into(),
            token: uuid::Uuid::new_v4().simple().to_string(),
            group,
        }
    }
}

impl Pki {
    /// Makes the certificate authority and the key of ServiceAccount tokens.
    pub(super) fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let pki = Self { dir };
        pki.request(
            "ca",
            "CN = dormouse-test-ca\n",
            "basicConstraints = critical,CA:TRUE\nkeyUsage = critical,digitalSignature,keyCertSign,cRLSign\n\
             subjectKeyIdentifier = hash\n",
            &[],
        )?;
        let (key, public) = (pki.file("sa.key"), pki.file("sa.pub"));
        command::capture(
            Command::new("openssl")
                .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"])
                .arg(&key),
        )?;
        command::capture(
            Command::new("openssl")
                .args(["ec", "-pubout", "-in"])
                .arg(&key)
                .arg("-out")
                .arg(&public),
        )?;
        Ok(pki)
    }

    /// Issues `NAME.crt` and `NAME.key`. `subject` is lines like `CN = x`.
    pub(super) fn issue(
        &self,
        name: &str,
        subject: &str,
        addresses: &[Ipv4Addr],
        names: &[&str],
    ) -> Result<()> {
        let mut extensions = String::from(
            "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\n\
             extendedKeyUsage = serverAuth,clientAuth\n",
        );
        let alternatives: Vec<String> = addresses
            .iter()
            .map(|address| format!("IP:{address}"))
            .chain(names.iter().map(|name| format!("DNS:{name}")))
            .collect();
        if !alternatives.is_empty() {
            extensions.push_str(&format!("subjectAltName = {}\n", alternatives.join(",")));
        }
        let (ca, key) = (self.file("ca.crt"), self.file("ca.key"));
        self.request(
            name,
            subject,
            &extensions,
            &[Path::new("-CA"), &ca, Path::new("-CAkey"), &key],
        )
    }

    fn request(&self, name: &str, subject: &str, extensions: &str, more: &[&Path]) -> Result<()> {
        let config = self.file(&format!("{name}.cnf"));
        let text = format!(
            "[req]\nprompt = no\ndistinguished_name = subject\nx509_extensions = extensions\n\
             [subject]\n{subject}[extensions]\n{extensions}"
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        command::capture(
            Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                ])
                .args(["-nodes", "-days", "3650", "-config"])
                .arg(&config)
                .arg("-keyout")
                .arg(self.file(&format!("{name}.key")))
                .arg("-out")
                .arg(self.file(&format!("{name}.crt")))
                .args(more),
        )
        .map(drop)
    }

    /// One of its files.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Copies some of its files to where a machine has them.
    pub(super) fn give(&self, to: &Path, names: &[&str]) -> Result<()> {
        fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
        for name in names {
            fs::copy(self.file(name), to.join(name))
                .with_context(|| format!("copy {name} to {}", to.display()))?;
        }
        Ok(())
    }
}

/// The API server's file of tokens.
pub(super) fn tokens(users: &[&User]) -> String {
    users
        .iter()
        .map(|user| {
            format!(
                "{},{},{},\"{}\"\n",
                user.token,
                user.name,
                user.name,
                user.group.unwrap_or_default()
            )
        })
        .collect()
}
