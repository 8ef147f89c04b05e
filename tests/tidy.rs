//! Keeps what the compiler does not: the arrows between the ranks, and a few habits. Each rule has a planted violation
//! below that it must find.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Columns of a line, strings not counted. rustfmt keeps code at 110; comments may be somewhat longer.
const WIDTH: usize = 140;
/// Lines of `main.rs`: parse, run, exit code.
const MAIN_LINES: usize = 30;

/// The ranks of the library, by top module. `media` and `session` have the same rank and never see each other.
const RANKS: &[(&str, u8)] = &[
    ("clock", 0),
    ("counters", 0),
    ("limits", 0),
    ("sync", 0),
    ("proto", 1),
    ("media", 2),
    ("session", 2),
    ("engine", 3),
    ("shell", 4),
];
const ENGINE: u8 = 3;
const SHELL: u8 = 4;

/// What nothing below the engine may touch: clocks, sockets, files, threads, processes.
const EFFECTS: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "io_uring",
    "libc",
    "socket2",
];

/// All of the library that the load tool may use, so that a bug cannot cancel itself out.
const LOAD_TOOL_MAY_USE: &[&str] = &["sipreel::proto::rtp", "sipreel::proto::pcap"];

/// Where the tools call the kernel by themselves.
const TOOLS_UNSAFE: &[&str] = &["tools/load/bpf.rs", "tools/load/wire.rs", "tools/peers/floor.rs"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    Arrow,
    Unranked,
    Effect,
    Unsafe,
    Safety,
    Print,
    Unfinished,
    ModuleDoc,
    Width,
    Name,
    MainLength,
    LoadTool,
}

const RULES: &[Rule] = &[
    Rule::Arrow,
    Rule::Unranked,
    Rule::Effect,
    Rule::Unsafe,
    Rule::Safety,
    Rule::Print,
    Rule::Unfinished,
    Rule::ModuleDoc,
    Rule::Width,
    Rule::Name,
    Rule::MainLength,
    Rule::LoadTool,
];

struct Violation {
    rule: Rule,
    place: String,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}: {}", self.place, self.rule, self.what)
    }
}

#[test]
fn the_tree_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: Vec<PathBuf> =
        ["src", "tools", "tests", "benches"].iter().flat_map(|dir| sources(&root.join(dir))).collect();
    assert!(files.len() > 20, "only {} files were found", files.len());
    let mut violations = Vec::new();
    for file in files {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap();
        violations.extend(check(path, &fs::read_to_string(&file).unwrap()));
    }
    let list: Vec<String> = violations.iter().map(Violation::to_string).collect();
    assert!(list.is_empty(), "\n{}\n", list.join("\n"));
}

/// A planted violation of each rule, each the only one of its text.
#[test]
fn every_rule_can_fail() {
    let planted: &[(Rule, &str, &str)] = &[
        (Rule::Arrow, "src/proto/rtp.rs", "use crate::media::Packet;"),
        (Rule::Arrow, "src/media/stream.rs", "fn f() { crate::session::table::Table::new(1); }"),
        (Rule::Arrow, "src/session/mod.rs", "use crate::{clock::Now, media::{Block, stream}};"),
        (Rule::Arrow, "src/limits.rs", "use crate::clock::Now;\nuse crate::proto::rtp;"),
        (Rule::Arrow, "src/engine/reactor.rs", "use crate::shell;"),
        (Rule::Arrow, "src/proto/sip/parse.rs", "use super::super::super::engine::cpu;"),
        (Rule::Unranked, "src/proto/rtp.rs", "use crate::helpers::x;"),
        (Rule::Unranked, "src/extra/mod.rs", "use crate::clock::Now;"),
        (Rule::Effect, "src/session/mod.rs", "fn f() { let t = std::time::Instant::now(); }"),
        (Rule::Effect, "src/media/mod.rs", "use std::time::SystemTime;\nfn f() { SystemTime::now(); }"),
        (Rule::Effect, "src/proto/raw.rs", "use std::{io, fs::File};"),
        (Rule::Effect, "src/proto/raw.rs", "fn f() { std::thread::yield_now() }"),
        (Rule::Effect, "src/session/mod.rs", "use std::net::{IpAddr, UdpSocket as Socket};"),
        (Rule::Unsafe, "src/media/stream.rs", "// SAFETY: none.\nfn f() { unsafe { g() } }"),
        (Rule::Unsafe, "src/shell/mod.rs", "// SAFETY: none.\nunsafe impl Send for X {}"),
        (Rule::Unsafe, "tools/load/media.rs", "// SAFETY: none.\nfn f() { unsafe { g() } }"),
        (Rule::Safety, "tools/load/wire.rs", "fn f() {\n    g();\n    unsafe { h() }\n}"),
        (Rule::Safety, "src/engine/ring.rs", "fn f() {\n    g();\n    unsafe { h() }\n}"),
        (Rule::Print, "src/engine/ring.rs", "fn f() { eprintln!(\"x\"); }"),
        (Rule::Print, "src/proto/rtp.rs", "fn f() { print !(\"x\"); }"),
        (Rule::Unfinished, "tools/load/main.rs", concat!("// TO", "DO: more")),
        (Rule::Unfinished, "src/shell/mod.rs", concat!("// FIX", "ME")),
        (Rule::Unfinished, "benches/parse.rs", "fn f() { dbg!(1); }"),
        (Rule::Unfinished, "src/clock.rs", "fn f() { unimplemented!() }"),
        (Rule::ModuleDoc, "src/proto/rtp.rs", "-"),
        (Rule::Width, "tests/tidy.rs", "-"),
        (Rule::Name, "src/session/utils.rs", "fn f() {}"),
        (Rule::Name, "src/session/mod.rs", "impl X { fn get_port(&self) {} }"),
        (Rule::MainLength, "src/main.rs", "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n"),
        (Rule::LoadTool, "tools/load/sip.rs", "use sipreel::proto::{rtp::Rtp, sip};"),
    ];
    for (rule, path, text) in planted {
        let text = match rule {
            Rule::ModuleDoc => "fn f() {}".into(),
            Rule::Width => format!(
                "//! A file.
// {}
",
                "…".repeat(WIDTH)
            ),
            _ => format!(
                "//! A file.
{text}
"
            ),
        };
        let mut found: Vec<Rule> = check(path, &text).iter().map(|violation| violation.rule).collect();
        found.dedup();
        assert_eq!(found, [*rule], "{path}: {text}");
    }
    for rule in RULES {
        assert!(planted.iter().any(|(planted, ..)| planted == rule), "{rule:?} has no planted violation");
    }
}

/// What looks like a violation and is none.
#[test]
fn innocent_text_passes() {
    let innocent = [
        (
            "src/session/mod.rs",
            "use crate::{clock::Now, proto::sip};\nuse super::table; // crate::media is not for us",
        ),
        (
            "src/session/mod.rs",
            "/// See [`crate::engine`].\nconst X: &str = \"crate::media unsafe println!()\";",
        ),
        (
            "src/session/mod.rs",
            "const X: &str = r#\"std::fs \" \"#; const Y: char = '\"'; use crate::limits::T1;",
        ),
        (
            "src/proto/rtp.rs",
            "use std::net::{IpAddr, SocketAddr};\nuse std::io;\nfn f<'a>(x: &'a str) -> &'a str { x }",
        ),
        (
            "src/engine/ring.rs",
            "// SAFETY: `x` lives until the completion.\nlet y = unsafe { x() };\nuse crate::media;",
        ),
        (
            "src/shell/mod.rs",
            "fn f() { eprintln!(\"x\"); std::fs::read(\"x\"); }\nuse crate::engine::{Gauges, cpu};",
        ),
        ("src/engine/ring.rs", "/// # Safety\n/// The entry must be valid.\npub unsafe fn push() {}"),
        ("src/media/mod.rs", "#[cfg(test)]\nmod tests {\n    use std::fs;\n}"),
        ("src/proto/sdp/tests.rs", "fn f() { let t = std::time::Instant::now(); }"),
        ("src/engine/ring.rs", "#[cfg(test)]\nmod tests {\n    fn f() { eprintln!(\"skipped\"); }\n}"),
        ("src/lib.rs", "pub mod shell;"),
        (
            "tools/load/rtp.rs",
            "use sipreel::proto::{pcap, rtp::Rtp};\nfn f() { println!(); std::fs::read(\"x\"); }",
        ),
        ("tests/shell.rs", "fn f() { println!(); std::thread::yield_now(); }"),
    ];
    for (path, text) in innocent {
        let found: Vec<String> =
            check(path, &format!("//! A file.\n{text}\n")).iter().map(Violation::to_string).collect();
        assert!(found.is_empty(), "{found:?}");
    }
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        match path.extension() {
            _ if path.is_dir() => files.extend(sources(&path)),
            Some(extension) if extension == "rs" => files.push(path),
            _ => {}
        }
    }
    files.sort();
    files
}

fn check(path: &str, text: &str) -> Vec<Violation> {
    let file = Source::new(path, text);
    let mut found = Vec::new();
    file.check_text(&mut found);
    file.check_code(&mut found);
    file.check_paths(&mut found);
    found
}

struct Source<'a> {
    path: &'a str,
    text: &'a str,
    /// The text with comments, strings and characters blanked; the lines stay.
    code: String,
    /// Line where tests begin, in a file of tests the first. What they read, measure or print is no effect of the product.
    tests: usize,
    /// `None` for `lib.rs`, the files of the binary, and everything outside `src`.
    module: Option<&'a str>,
}

impl<'a> Source<'a> {
    fn new(path: &'a str, text: &'a str) -> Source<'a> {
        let top =
            path.strip_prefix("src/").map(|rest| rest.split('/').next().unwrap().trim_end_matches(".rs"));
        let module = top.filter(|top| !["lib", "main", "demo"].contains(top));
        let code = blank(text, |_| true);
        let of_tests = path.ends_with("/tests.rs");
        let tests = code.lines().position(|line| of_tests || line == "#[cfg(test)]").unwrap_or(usize::MAX);
        Source { path, text, code, tests, module }
    }

    /// The rank of the file: everything outside the library's modules stands at the top.
    fn rank(&self) -> u8 {
        self.module.map_or(SHELL, |module| rank(module).unwrap_or(SHELL))
    }

    fn report(&self, found: &mut Vec<Violation>, rule: Rule, line: usize, what: impl Into<String>) {
        found.push(Violation { rule, place: format!("{}:{}", self.path, line + 1), what: what.into() });
    }

    /// Rules on the text as it stands, comments included.
    fn check_text(&self, found: &mut Vec<Violation>) {
        if !self.text.starts_with("//! ") {
            self.report(found, Rule::ModuleDoc, 0, "the first line does not say what the file is (`//! …`)");
        }
        let unquoted = blank(self.text, |literal| !literal.starts_with('/'));
        for (number, line) in unquoted.lines().enumerate() {
            if line.chars().count() > WIDTH {
                self.report(found, Rule::Width, number, format!("longer than {WIDTH} columns"));
            }
        }
        for (number, line) in self.text.lines().enumerate() {
            for word in [concat!("TO", "DO"), concat!("FIX", "ME")] {
                if words(line).any(|found| found == word) {
                    self.report(found, Rule::Unfinished, number, word);
                }
            }
        }
        let lines = self.text.lines().count();
        if self.path == "src/main.rs" && lines > MAIN_LINES {
            self.report(found, Rule::MainLength, lines, format!("more than {MAIN_LINES} lines"));
        }
        if ["utils", "util", "helpers", "helper", "common", "manager"]
            .iter()
            .any(|name| self.path.ends_with(&format!("/{name}.rs")))
        {
            self.report(found, Rule::Name, 0, "the name says nothing about what is inside");
        }
    }

    /// Rules on words of the code.
    fn check_code(&self, found: &mut Vec<Violation>) {
        let may_print = self.module.is_none() || self.rank() == SHELL;
        for (number, line) in self.code.lines().enumerate() {
            let may_print = may_print || number >= self.tests;
            for word in words(line) {
                let is_macro = line.split(word).skip(1).any(|rest| rest.trim_start().starts_with('!'));
                match word {
                    "unsafe" if self.must_be_safe() => {
                        self.report(found, Rule::Unsafe, number, "unsafe code belongs into the engine");
                    }
                    "unsafe" if self.must_justify() && !self.is_justified(number) => {
                        self.report(found, Rule::Safety, number, "no `// SAFETY:` above");
                    }
                    "print" | "println" | "eprint" | "eprintln" if is_macro && !may_print => {
                        self.report(found, Rule::Print, number, "only the shell prints");
                    }
                    "dbg" | "todo" | "unimplemented" if is_macro => {
                        self.report(found, Rule::Unfinished, number, word);
                    }
                    // The standard library's own name for the mutable twin of `get`.
                    "get_mut" => {}
                    word if word.starts_with("get_") && line.contains(&format!("fn {word}")) => {
                        self.report(
                            found,
                            Rule::Name,
                            number,
                            format!("{word}: a getter has the name of what it returns"),
                        );
                    }
                    _ => {}
                }
            }
        }
    }

    fn must_be_safe(&self) -> bool {
        let of_a_tool = self.path.starts_with("tools/") && !TOOLS_UNSAFE.contains(&self.path);
        of_a_tool || self.module.is_some_and(|module| module != "engine")
    }

    fn must_justify(&self) -> bool {
        self.module == Some("engine") || TOOLS_UNSAFE.contains(&self.path)
    }

    /// A SAFETY comment on the line, or in the comment above the statement that begins within four lines; for an unsafe
    /// function the section of its documentation.
    fn is_justified(&self, number: usize) -> bool {
        let lines: Vec<&str> = self.text.lines().collect();
        let mut above = lines[..=number].iter().rev();
        let mut code_lines = 0;
        above.any(|line| {
            code_lines += usize::from(!line.trim_start().starts_with("//"));
            code_lines > 5 || line.contains("// SAFETY:") || line.contains("/// # Safety")
        }) && code_lines <= 5
    }

    /// Rules on the paths that the file names.
    fn check_paths(&self, found: &mut Vec<Violation>) {
        for (number, path) in paths(&self.code) {
            self.check_arrow(found, number, &path);
            let below = self.rank() < ENGINE && number < self.tests;
            if below && EFFECTS.iter().any(|effect| reaches(&path, effect)) {
                self.report(
                    found,
                    Rule::Effect,
                    number,
                    format!("{path}: below the engine everything is an argument"),
                );
            }
            let of_the_library = path.starts_with("sipreel::");
            let allowed = LOAD_TOOL_MAY_USE
                .iter()
                .any(|allowed| path == *allowed || path.starts_with(&format!("{allowed}::")));
            if self.path.starts_with("tools/load/") && of_the_library && !allowed {
                self.report(found, Rule::LoadTool, number, format!("{path}: only {LOAD_TOOL_MAY_USE:?}"));
            }
        }
        if let Some(module) = self.module.filter(|module| rank(module).is_none()) {
            self.report(
                found,
                Rule::Unranked,
                0,
                format!("{module} has no rank; give it one in tests/tidy.rs"),
            );
        }
    }

    fn check_arrow(&self, found: &mut Vec<Violation>, number: usize, path: &str) {
        let Some(from) = self.module else { return };
        let Some(to) = self.target(path) else { return };
        let Some(rank) = rank(to) else {
            return self.report(found, Rule::Unranked, number, format!("{path}: {to} has no rank"));
        };
        // The modules at the bottom may see each other.
        let down = to == from || rank < self.rank() || rank == 0;
        if !down {
            self.report(found, Rule::Arrow, number, format!("{from} → {to} does not point down"));
        }
    }

    /// The top module that a path leads to, through `crate` or as many `super` as it takes.
    fn target<'p>(&self, path: &'p str) -> Option<&'p str> {
        let mut segments = path.split("::");
        let first = segments.next()?;
        if first == "crate" {
            return segments.next();
        }
        let supers = path.split("::").take_while(|segment| *segment == "super").count();
        let depth = self
            .path
            .trim_start_matches("src/")
            .trim_end_matches(".rs")
            .trim_end_matches("/mod")
            .split('/')
            .count();
        // One `super` less leads out of an inline module, not out of the file's.
        (supers > 0 && supers >= depth)
            .then(|| path.split("::").nth(supers))
            .flatten()
            .filter(|to| rank(to).is_some())
    }
}

fn rank(module: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

/// Whether a path names the effect: `std::fs::File` and `fs::read` after `use std::fs` both begin or end with it.
fn reaches(path: &str, effect: &str) -> bool {
    let whole = format!("::{path}::");
    match effect.contains("::now") {
        true => whole.contains(&format!("::{effect}::")),
        false => whole.starts_with(&format!("::{effect}::")),
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Every path of two segments or more, with its line; the branches of `{…}` each by themselves.
fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut line = 0;
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        if c.is_alphabetic() || c == '_' {
            let (path, after) = path(rest);
            let begin = line;
            line += rest[..rest.len() - after.len()].matches('\n').count();
            rest = after;
            found.extend(path.into_iter().filter(|path| path.contains("::")).map(|path| (begin, path)));
        } else {
            line += usize::from(c == '\n');
            rest = &rest[c.len_utf8()..];
        }
    }
    found
}

/// The paths that begin at the beginning of `text`, which is a word, and what is after them.
fn path(text: &str) -> (Vec<String>, &str) {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let Some(rest) = rest.trim_start().strip_prefix("::").map(str::trim_start) else {
        return (vec![word.into()], rest);
    };
    let (branches, rest) = match rest.chars().next() {
        Some('{') => group(&rest[1..]),
        Some(c) if c.is_alphabetic() || c == '_' => path(rest),
        _ => (vec!["*".into()], rest),
    };
    (branches.into_iter().map(|branch| format!("{word}::{branch}")).collect(), rest)
}

/// The branches up to the closing brace, and what is after it.
fn group(mut rest: &str) -> (Vec<String>, &str) {
    let mut branches = Vec::new();
    while let Some(c) = rest.chars().next() {
        if c == '}' {
            return (branches, &rest[1..]);
        }
        if c.is_alphabetic() || c == '_' {
            let (found, after) = path(rest);
            branches.extend(found);
            // `as Name` is no path of its own; a word after a blank is skipped with what it names.
            rest = after.find([',', '}']).map_or("", |end| &after[end..]);
        } else {
            rest = &rest[c.len_utf8()..];
        }
    }
    (branches, rest)
}

/// Takes the comments, strings and characters out that `which` says; what remains keeps its line.
fn blank(text: &str, which: fn(&str) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (literal, after) = rest.split_at(literal(rest, out.chars().next_back()));
        if literal.is_empty() {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        match which(literal) {
            true => out.extend(std::iter::repeat_n('\n', literal.matches('\n').count())),
            false => out.push_str(literal),
        }
        rest = after;
    }
    out
}

/// Bytes of the comment, string or character that `text` begins with; 0 when it begins with code.
fn literal(text: &str, before: Option<char>) -> usize {
    let until =
        |from: usize, end: &str| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    let in_a_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return until(2, "*/");
    }
    if (text.starts_with('r') || text.starts_with("br")) && !in_a_word {
        let quote = text.find('"').unwrap_or(0);
        let hashes = text[..quote].trim_start_matches('b').trim_start_matches('r');
        if quote > 0 && hashes.bytes().all(|b| b == b'#') {
            return until(quote + 1, &format!("\"{hashes}"));
        }
    }
    if text.starts_with('"') {
        return quoted(text, b'"');
    }
    // A quote begins a character when it ends after one, otherwise a lifetime.
    if text.starts_with("'\\") || text.starts_with('\'') && text.chars().nth(2) == Some('\'') {
        return quoted(text, b'\'');
    }
    0
}

/// Bytes up to the closing quote, escapes skipped.
fn quoted(text: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if byte == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}
