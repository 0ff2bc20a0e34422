//! Who may use whom among the crates of the workspace. Dependencies of tests may go anywhere but to `xtask`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// One package of the workspace.
struct Package {
    name: String,
    /// Relative to the workspace, as `udrv/backend`.
    folder: String,
    dependencies: Vec<Dependency>,
    features: serde_json::Value,
}

/// One of its dependencies within the workspace.
struct Dependency {
    folder: String,
    optional: bool,
    for_tests: bool,
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests' folder is in the workspace's")
}

fn cargo(arguments: &[&str]) -> String {
    let out = Command::new(env!("CARGO")).args(arguments).current_dir(workspace()).output().expect("cargo starts");
    assert!(out.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

fn relative(path: &str) -> String {
    let path = Path::new(path).strip_prefix(workspace()).expect("a path in the workspace");
    path.to_str().expect("UTF-8").to_owned()
}

fn packages() -> Vec<Package> {
    let metadata = cargo(&["metadata", "--no-deps", "--offline", "--locked", "--format-version=1"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("JSON");
    let dependency = |dependency: &serde_json::Value| {
        Some(Dependency {
            folder: relative(dependency["path"].as_str()?),
            optional: dependency["optional"] == true,
            for_tests: dependency["kind"] == "dev",
        })
    };
    let package = |package: &serde_json::Value| Package {
        name: package["name"].as_str().expect("a name").to_owned(),
        folder: relative(package["manifest_path"].as_str().expect("a path").trim_end_matches("/Cargo.toml")),
        dependencies: package["dependencies"].as_array().expect("a list").iter().filter_map(dependency).collect(),
        features: package["features"].clone(),
    };
    metadata["packages"].as_array().expect("packages").iter().map(package).collect()
}

/// `devices/NAME`; `devices/model` is none, it is what they are made of.
fn is_device(folder: &str) -> bool {
    folder.starts_with("devices/") && folder != "devices/model"
}

/// The layers, lowest first. A package without one has to be given one here.
fn may_use(user: &str, used: &str) -> bool {
    match user {
        "stub-driver/wire" | "udrv/backend" => false,
        "stub-driver/channel" => ["stub-driver/wire", "udrv/backend"].contains(&used),
        "udrv/usb" => ["udrv/backend", "stub-driver/channel"].contains(&used),
        "udrv/signal" | "udrv/inspect" => used == "udrv/backend",
        "devices/model" | "udrv/vfio" | "udrv/debug" => ["udrv/backend", "udrv/signal"].contains(&used),
        "udrv" => {
            let below = ["udrv/backend", "udrv/debug", "udrv/inspect", "udrv/vfio"];
            below.contains(&used) || ["stub-driver/wire", "stub-driver/channel"].contains(&used)
        }
        device if is_device(device) => ["udrv/backend", "udrv", "udrv/usb", "devices/model"].contains(&used),
        "stub-driver" => {
            let below = [
                "udrv/backend",
                "udrv/debug",
                "udrv/inspect",
                "udrv/vfio",
                "udrv/usb",
                "stub-driver/wire",
                "stub-driver/channel",
            ];
            below.contains(&used) || used == "devices/model" || is_device(used)
        }
        "udrv/cli" => used != "stub-driver" && used != "xtask",
        "tests" | "tests/fuzz" => used != "xtask",
        example if example.starts_with("examples") => used != "xtask",
        "xtask" => false,
        other => panic!("{other} has no layer: say in may_use what it may use"),
    }
}

#[test]
fn packages_use_only_layers_below_them() {
    let packages = packages();
    assert!(packages.len() >= 11, "the workspace has not been understood");
    let mut forbidden = Vec::new();
    for package in &packages {
        for dependency in &package.dependencies {
            let allowed = if dependency.for_tests {
                dependency.folder != "xtask"
            } else {
                may_use(&package.folder, &dependency.folder)
            };
            if !allowed {
                forbidden.push(format!("{} uses {}", package.folder, dependency.folder));
            }
        }
    }
    assert!(forbidden.is_empty(), "{forbidden:#?}");
}

/// A device's driver is for the runtime's side, its model for either: who wants one must not get the other's dependencies.
#[test]
fn devices_keep_driver_and_model_apart() {
    for device in packages().iter().filter(|package| is_device(&package.folder)) {
        let name = &device.name;
        // A USB device's driver and model need the same: transfers.
        let features = [("driver", "dep:udrv", "dep:udrv-model"), ("model", "dep:udrv-model", "dep:udrv")];
        let on_usb = device.dependencies.iter().any(|dependency| dependency.folder == "udrv/usb");
        for (feature, needs, other) in features.into_iter().filter(|_| !on_usb) {
            let enables =
                device.features[feature].as_array().unwrap_or_else(|| panic!("{name} has no feature {feature}"));
            assert!(enables.iter().any(|what| what == needs), "{name}: feature {feature} without {needs}");
            assert!(!enables.iter().any(|what| what == other), "{name}: feature {feature} with {other}");
        }
        for folder in ["udrv", "devices/model"] {
            let mut uses =
                device.dependencies.iter().filter(|dependency| dependency.folder == folder && !dependency.for_tests);
            assert!(uses.all(|dependency| dependency.optional), "{name} needs {folder} always");
        }
        assert_eq!(device.features["default"].as_array().map_or(0, Vec::len), 0, "{name} has default features");
    }
}

/// With the features that the named package enables, so a device's driver dragged in by a feature is found.
fn reached_from(package: &str) -> BTreeSet<String> {
    let tree = cargo(&["tree", "--offline", "--locked", "--edges=normal,build", "--prefix=none", "--package", package]);
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn stub_does_not_reach_the_runtime() {
    let reached = reached_from("stub-driver");
    assert!(reached.contains("udrv-backend"), "the tree has not been understood: {reached:?}");
    assert!(!reached.contains("udrv"), "{reached:?}");
}

#[test]
fn runtime_does_not_reach_stub_or_models() {
    let reached = reached_from("udrv");
    assert!(reached.contains("udrv-backend"), "the tree has not been understood: {reached:?}");
    for package in ["stub-driver", "udrv-model", "udrv-edu", "udrv-nvme"] {
        assert!(!reached.contains(package), "{package} is reached: {reached:?}");
    }
}
