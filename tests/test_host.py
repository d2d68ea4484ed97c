"""The machine's memory: what a container's limit leaves of it."""

from pathlib import Path

from fastsft import host


def group(folder: Path, limit: str, used: int, *, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {cached}\n")


def test_every_group_above_us_limits_and_files_can_be_given_back(tmp_path: Path):
    group(tmp_path / "user" / "ours", "max", 10)
    group(tmp_path / "user", "1000", 300, cached=100)
    own = tmp_path / "cgroup"
    own.write_text("0::/user/ours\n")

    assert list(host.limits(tmp_path, own)) == [(1000, 200)]


def test_without_groups_nothing_limits(tmp_path: Path):
    assert list(host.limits(tmp_path, tmp_path / "none")) == []


def test_the_machine_never_has_more_than_its_limit(tmp_path: Path, monkeypatch):
    group(tmp_path, "1000", 400)
    monkeypatch.setattr(host, "CGROUPS", tmp_path)
    monkeypatch.setattr(host, "limits", lambda root, own: [(1000, 400)])

    found = host.here()

    assert (found.available_bytes, found.total_bytes) == (600, 1000)
