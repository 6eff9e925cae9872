//! Headers alone: how many requests and bytes a look at a checkpoint takes, and that they are side by side.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use safetensors::tensor::{Dtype, TensorView};
use tempfile::tempdir;

use crate::common::{run, trephine};
use crate::stores::{TOKEN, hub, web};

/// A checkpoint of 60 files with `tensors` tensors each.
fn sharded(folder: &Path, tensors: usize) -> u64 {
    fs::create_dir_all(folder).unwrap();
    let (mut map, mut headers) = (BTreeMap::new(), 0);
    let bytes = vec![0u8; 64 * 64 * 2];
    for shard in 1..=60 {
        let file = format!("model-{shard:05}-of-00060.safetensors");
        let names: Vec<String> = (0..tensors)
            .map(|number| format!("model.layers.{shard}.mlp.experts.{number}.up_proj.weight"))
            .collect();
        let views =
            names.iter().map(|name| (name, TensorView::new(Dtype::BF16, vec![64, 64], &bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &folder.join(&file)).unwrap();
        let head = fs::read(folder.join(&file)).unwrap();
        headers += 8 + u64::from_le_bytes(head[..8].try_into().unwrap());
        names.into_iter().for_each(|name| drop(map.insert(name, file.clone())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    fs::write(
        folder.join("config.json"),
        r#"{"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}"#,
    )
    .unwrap();
    headers
}

#[test]
fn sixty_files_by_their_headers_alone() {
    let home = tempdir().unwrap();
    for (tensors, most_requests) in [(20, 130), (400, 190)] {
        let name = format!("m{tensors}");
        let headers = sharded(&home.path().join(&name), tensors);
        let server = hub(home.path(), u64::MAX);
        let ended = run(trephine()
            .args(["probe", &format!("hf://test/{name}")])
            .env("HF_ENDPOINT", server.url(""))
            .env("HF_TOKEN", TOKEN))
        .code(0);
        let requests = server.requests().len();
        assert!(requests <= most_requests, "{requests} requests");
        assert!(ended.stderr.contains(&format!("link: {requests} requests")), "{}", ended.stderr);
        // One range of 32 KiB a file where the header is shorter; the rest of it where it is longer; index and config.
        let small =
            fs::metadata(home.path().join(&name).join("model.safetensors.index.json")).unwrap().len() + 4096;
        let first = 60 * (32 << 10);
        assert!(
            server.sent() <= headers.max(first) + 2 * small,
            "{} bytes sent, headers {headers}",
            server.sent()
        );
    }
}

#[test]
fn headers_are_fetched_side_by_side() {
    let home = tempdir().unwrap();
    sharded(&home.path().join("m"), 2);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let server = web(home.path(), move |_, reply| {
        seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(30));
        now.fetch_sub(1, Ordering::SeqCst);
        reply
    });
    run(trephine().args(["probe", &server.url("m/")])).code(0);
    assert!(most.load(Ordering::SeqCst) >= 4, "{most:?} requests at once");
}
