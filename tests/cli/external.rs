//! Weights outside the model's file, as hubs and exporters lay them out.

use super::{folder, with};
use crate::common::{listing, text, tool, tool_ok};
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{Message, ModelProto, StringStringEntryProto};
use std::path::{Path, PathBuf};

/// The folder's network with its weights, from byte 64 on, in `w.bin`; `length` of each is stated if there is one.
fn outside(length: Option<&str>) -> (tempfile::TempDir, PathBuf) {
    let (dir, model) = folder();
    let mut m = ModelProto::parse_from_bytes(&std::fs::read(&model).unwrap()).unwrap();
    let mut data = vec![0; 64];
    for t in &mut m.graph.as_mut().unwrap().initializer {
        let entry =
            |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into(), ..Default::default() };
        t.external_data = vec![entry("location", "w.bin"), entry("offset", &data.len().to_string())];
        t.external_data.extend(length.map(|n| entry("length", n)));
        t.data_location = DataLocation::EXTERNAL.into();
        data.append(&mut t.raw_data);
    }
    std::fs::write(&model, m.write_to_bytes().unwrap()).unwrap();
    std::fs::write(dir.path().join("w.bin"), data).unwrap();
    (dir, model)
}

/// Type and shape say how many bytes a tensor has; many writers leave the length out, or say 0.
#[test]
fn external_data_needs_no_length() {
    for length in [None, Some("0")] {
        let (_dir, model) = outside(length);
        for engine in ["tract", "ort"] {
            let ran = tool_ok(&with(&model, &["--loss", "mse", "--verify", engine, "--json"])).json();
            assert_eq!(ran["verify"]["emitted"]["equivalent"], true, "{length:?} in {engine}");
        }
    }
}

#[cfg(unix)]
fn link(to: &str, at: &Path) {
    std::os::unix::fs::symlink(to, at).unwrap();
}

/// The cache of a hub: model and data are links into one folder of blobs.
#[test]
#[cfg(unix)]
fn a_hub_s_cache_is_read_through_its_links() {
    let (dir, model) = outside(None);
    let (blobs, snapshot) = (dir.path().join("blobs"), dir.path().join("snapshots/0123"));
    std::fs::create_dir(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::rename(&model, blobs.join("6d02")).unwrap();
    std::fs::rename(dir.path().join("w.bin"), blobs.join("da0c")).unwrap();
    link("../../blobs/6d02", &snapshot.join("net.onnx"));
    link("../../blobs/da0c", &snapshot.join("w.bin"));
    let model = snapshot.join("net.onnx");
    assert!(tool_ok(&["inspect", &text(&model)]).out.contains("residual adds"));
    for engine in ["tract", "ort"] {
        let ran = tool_ok(&with(&model, &["--loss", "mse", "--verify", engine, "--json"])).json();
        assert_eq!(ran["verify"]["emitted"]["equivalent"], true, "{engine}");
    }
    // Beside the link lies a file of the output's own; the link stays.
    assert!(listing(&snapshot).iter().any(|n| n == "w.1.bin"), "{:?}", listing(&snapshot));
    tool_ok(&["verify", &text(&model), &text(&snapshot.join("net.ancre.onnx"))]);

    std::fs::rename(blobs.join("da0c"), dir.path().join("elsewhere")).unwrap();
    std::fs::remove_file(snapshot.join("w.bin")).unwrap();
    link("../../elsewhere", &snapshot.join("w.bin"));
    let said = tool(&["inspect", &text(&model)]);
    assert!(said.status == 2 && said.err.contains("`w.bin` is a link that leads neither"), "{}", said.err);
}

#[test]
fn a_pointer_of_git_lfs_is_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let (dir, model) = outside(None);
    std::fs::write(dir.path().join("w.bin"), pointer).unwrap();
    let said = tool(&with(&model, &["--loss", "mse"]));
    assert!(said.status == 2 && said.err.contains("`git lfs pull`") && said.err.contains("w.bin"), "{}", said.err);
    std::fs::write(&model, pointer).unwrap();
    let said = tool(&["inspect", &text(&model)]);
    assert!(said.status == 2 && said.err.contains("is a Git LFS pointer, not the model"), "{}", said.err);
}
