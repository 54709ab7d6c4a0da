"""What may be deployed, by what command, and the files that others deploy with."""

from __future__ import annotations

import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.artifacts.artifact import quantize_model
from qlab.models.locating import kind_of
from qlab.models.opening import OpenedModel
from qlab.plan.plan import CACHES
from qlab.recipes import parse
from qlab.serve.deployment import Deployment, read_key
from qlab.serve.files import files_of, write_files
from qlab.serve.runtimes.ollama import Ollama, modelfile
from qlab.serve.runtimes.registry import RUNTIMES, runtime_for, runtime_named
from qlab.support.errors import UserError

KEY = "a-key-of-twenty-four-chr"
SERVED = {"llamacpp": "q8_0", "vllm": "rtn-w4g64", "tgi": "gptq-w4g64", "ollama": "q8_0"}


@pytest.fixture(scope="module")
def artifacts(tiny: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import torch

    out = tmp_path_factory.mktemp("artifacts")
    recipes = [parse(name) for name in dict.fromkeys(SERVED.values())]
    made = quantize_model(tiny, recipes, torch.arange(4 * 32).view(4, 32) % 200, out)
    return {artifact.path.name: artifact.path for artifact in made}


def deployment(folder: Path, **options: Any) -> Deployment:
    return Deployment(folder, "my-model", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "a b; rm -rf /"}, "the name 'a b; rm -rf /' will not do"),
        ({"port": 0}, "port 0"),
        ({"host": "0.0.0.0"}, "give a key"),
        ({"host": "example"}, "expected an address"),
        ({"context": 1}, "expected a context"),
        ({"cache": "q2_k"}, "a KV cache in 'q2_k': expected f16, q8_0, q4_0, fp8"),
    ],
)
def test_what_no_runtime_could_take_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Deployment(**({"folder": tmp_path, "name": "m"} | options))


def test_a_key_file_is_private_and_holds_a_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        read_key(file)
    file.chmod(0o600)
    assert read_key(file) == KEY
    assert KEY not in repr(deployment(tmp_path, key=KEY, host="0.0.0.0"))
    file.write_text("short")
    with pytest.raises(UserError, match="16 to 512"):
        read_key(file)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, said in (("none", "is not there"), (".", "not a regular file"), ("pipe", "not a regular file")):
        with pytest.raises(UserError, match=said):
            read_key(tmp_path / name)
    for content in (b"\xff" * 32, b"k" * 10**6, b"a key with blanks in it", b"\0" * 32, ("é" * 32).encode()):
        file.write_bytes(content)
        with pytest.raises(UserError, match="key") as refused:
            read_key(file)
        assert len(str(refused.value)) < 300


def test_formats_find_their_runtimes(artifacts: dict[str, Path]) -> None:
    assert {name: kind_of(path) for name, path in artifacts.items()} == {"q8_0": "gguf", "rtn-w4g64": "awq", "gptq-w4g64": "gptq"}
    assert runtime_for("gguf").name == "llamacpp"
    assert runtime_for("awq").name == "vllm"
    with pytest.raises(UserError, match="no runtime 'x'"):
        runtime_named("x")
    with pytest.raises(UserError, match="vLLM serves awq, gptq, compressed-tensors, dense; q8_0 is gguf"):
        files_of(RUNTIMES["vllm"], deployment(artifacts["q8_0"]))


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_commands_carry_what_was_asked_and_never_the_key(name: str, artifacts: dict[str, Path]) -> None:
    runtime, folder = RUNTIMES[name], artifacts[SERVED[name]]
    asked = deployment(folder, context=1234, port=8123, key=None if name == "ollama" else KEY, gpus=2)
    command, environment = runtime.command(asked), runtime.environment(asked)
    assert KEY not in " ".join(command)
    assert "8123" in " ".join([*command, *environment.values()])
    assert "127.0.0.1" in " ".join([*command, *environment.values()])
    if name != "ollama":
        assert KEY in environment.values()
        assert "1234" in " ".join(command)
    else:
        with pytest.raises(UserError, match="knows no keys"):
            runtime.command(deployment(folder, key=KEY))


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_comment_is_of_a_flag_that_is_there(gpus: int, artifacts: dict[str, Path]) -> None:
    text = files_of(RUNTIMES["vllm"], deployment(artifacts[SERVED["vllm"]], gpus=gpus, key=KEY))["compose.yaml"]
    assert [part in text for part in ("0.90 is the guide's", "- --gpu-memory-utilization")] == [bool(gpus)] * 2


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_a_cache_of_fewer_bits_is_asked_for_in_every_way(name: str, artifacts: dict[str, Path]) -> None:
    runtime, folder = RUNTIMES[name], artifacts[SERVED[name]]
    for cache in CACHES:
        asked = deployment(folder, cache=cache)
        if cache not in runtime.caches:
            with pytest.raises(UserError, match=f"not in {cache}: choose one of these"):
                files_of(runtime, asked)
            continue
        command = " ".join([*runtime.command(asked), *runtime.environment(asked).values()])
        assert cache == "f16" or cache in command
        assert cache == "f16" or cache in files_of(runtime, asked)["compose.yaml"]


@pytest.mark.parametrize("gpus", [0, 2])
@pytest.mark.parametrize("name", list(RUNTIMES))
def test_compose_files_obey_the_published_schema_and_the_rules_of_the_house(name: str, gpus: int, artifacts: dict[str, Path]) -> None:
    schema = json.loads((Path(__file__).parent / "schemas/compose.json").read_text())
    text = files_of(RUNTIMES[name], deployment(artifacts[SERVED[name]], gpus=gpus, key=KEY))["compose.yaml"]
    assert KEY not in text
    found = yaml.safe_load(text)
    jsonschema.validate(found, schema)
    (service,) = found["services"].values()
    assert re.search(r":[vsb]?[\w-]*\d", service["image"])  # pinned
    assert service["user"] == "10001:10001"
    assert service["read_only"]
    assert service["ports"][0].startswith("127.0.0.1:8000:")
    reserved = service["deploy"]["resources"].get("reservations")
    assert bool(reserved) == bool(gpus)
    with pytest.raises(jsonschema.ValidationError):  # the schema can fail
        jsonschema.validate({"services": {"a": service | {"prots": []}}}, schema)


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_manifests_obey_the_published_schema_and_the_rules_of_the_house(name: str, artifacts: dict[str, Path]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    text = files_of(RUNTIMES[name], deployment(artifacts[SERVED[name]], gpus=1, key=KEY))["kubernetes.yaml"]
    assert KEY not in text
    workload, service, *policies = yaml.safe_load_all(text)
    assert len(policies) == (name == "ollama")  # who knows no keys is not open to the cluster
    for manifest in (workload, service, *policies):
        validate.validate(manifest, "1.34", strict=True)
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    assert "memory" in container["resources"]["limits"]
    for policy in policies:
        assert policy["spec"]["podSelector"]["matchLabels"] == workload["spec"]["selector"]["matchLabels"]
        assert policy["spec"]["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {"my-model-client": "true"}}}]
    assert service["spec"]["selector"] == workload["spec"]["selector"]["matchLabels"]
    del workload["spec"]["selector"]
    with pytest.raises(validate.ValidationError):  # the schema can fail
        validate.validate(workload, "1.34", strict=True)


def test_memory_limits_cover_weights_and_cache(artifacts: dict[str, Path]) -> None:
    def limit(**options: Any) -> int:
        service = yaml.safe_load(files_of(RUNTIMES["llamacpp"], deployment(artifacts["q8_0"], **options))["compose.yaml"])["services"]
        return int(service["my-model"]["deploy"]["resources"]["limits"]["memory"].rstrip("M"))

    assert limit(context=1 << 20, sequences=8) > limit(context=1024) > 2048


MODELFILE = re.compile(r'(FROM \S+|PARAMETER [a-z_]+ \S+|TEMPLATE [^"\n]+|SYSTEM """(?s:.*?)""")\n')


def test_the_modelfile_is_one(artifacts: dict[str, Path]) -> None:
    asked = deployment(artifacts["q8_0"], context=8192, gpus=1)
    text = modelfile(asked, "./m.gguf")
    assert MODELFILE.sub("", text) == ""  # nothing but instructions of Ollama's grammar
    assert text.startswith("FROM ./m.gguf\n")
    assert "PARAMETER num_ctx 8192\nPARAMETER num_gpu 99\n" in text
    assert "Réponds en français" in text
    with pytest.raises(UserError, match='must not hold """'):
        modelfile(deployment(artifacts["q8_0"], system='"""\nFROM evil'), "./m.gguf")


def test_files_are_written_whole_or_not_at_all(artifacts: dict[str, Path], tmp_path: Path) -> None:
    written = write_files(Ollama(), deployment(artifacts["q8_0"]), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)
    assert {path.name for path in written} == {"compose.yaml", "kubernetes.yaml", "Modelfile"}
    with pytest.raises(UserError, match="is there already"):
        write_files(Ollama(), deployment(artifacts["q8_0"]), tmp_path / "out")


def test_a_missing_runtime_is_named_with_its_remedy() -> None:
    assert set(RUNTIMES) == {"llamacpp", "vllm", "tgi", "ollama"}
    assert RUNTIMES["llamacpp"].present()
    assert all(runtime.install for runtime in RUNTIMES.values())


@pytest.mark.parametrize("name", ["a\nb", "a\rFROM evil", "a\u2028b", "a\x85b", "a\x1b[2Jb", " a", "a ", os.fsdecode(b"a\xff")])
def test_names_that_are_no_text_are_refused_at_the_door(name: str, tiny: OpenedModel, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="will not do: expected one without line breaks"):
        deployment(tmp_path / name)
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / f"{name}.gguf").write_bytes(b"GGUF")
    if name.strip() == name or name.startswith(" "):
        with pytest.raises(UserError, match="will not do: expected one without line breaks"):
            deployment(tmp_path / "good")


def test_what_compose_and_kubernetes_would_replace_is_escaped(artifacts: dict[str, Path], tmp_path: Path) -> None:
    odd = "${HOME} $(POD) # 'x': \"y\" {{ a }} \\ *.gguf"
    (tmp_path / odd).symlink_to(next(artifacts["q8_0"].glob("*.gguf")))
    found = files_of(RUNTIMES["llamacpp"], Deployment(tmp_path / odd, "m"))
    (service,) = yaml.safe_load(found["compose.yaml"])["services"].values()
    workload, _ = yaml.safe_load_all(found["kubernetes.yaml"])
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    for words in (service["command"], container["args"]):
        assert [word.replace("$$", "$") for word in words if "gguf" in word] == [f"/model/{odd}"]
        assert not re.search(r"(?<!\$)\$(?!\$)", " ".join(words))


MARKS = st.text("ab\n\r\t\x85\u2028\0 .-_#:$(){}[]'\"\\|>&*!%@`,?~é/\udcff", min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(st.one_of(MARKS, st.text(min_size=1, max_size=20)))
def test_any_name_is_refused_or_stays_one_word_of_every_file(artifacts: dict[str, Path], name: str) -> None:
    gguf = next(artifacts["q8_0"].glob("*.gguf"))
    with tempfile.TemporaryDirectory() as folder:
        try:
            (file := Path(folder) / f"{name}.gguf").symlink_to(gguf)
        except (OSError, ValueError):  # none that a file can have
            file = gguf
        # Of the file, and of what clients ask for.
        for asked in (lambda: Deployment(file, "m"), lambda: Deployment(gguf, name)):
            with suppress(UserError):
                check_files(asked())


def check_files(asked: Deployment) -> None:
    """The files for llama.cpp and for Ollama say no more than they should, whatever the names in them."""
    for runtime in ("llamacpp", "ollama"):
        found = files_of(RUNTIMES[runtime], asked)
        compose = yaml.safe_load(found["compose.yaml"])
        assert list(compose) == ["services"]
        (service,) = compose["services"].values()
        manifests = list(yaml.safe_load_all(found["kubernetes.yaml"]))
        assert [manifest["kind"] for manifest in manifests] == [
            "Deployment",
            "Service",
            *(["NetworkPolicy"] if runtime == "ollama" else []),
        ]
        (container,) = manifests[0]["spec"]["template"]["spec"]["containers"]
        if runtime == "llamacpp":
            for words in (service["command"], container["args"]):
                assert f"/model/{asked.gguf.name}" in [word.replace("$$", "$") for word in words]
                assert asked.name in words
        for text in (found["compose.yaml"], found["kubernetes.yaml"]):
            head = text[: text.index("services:" if text == found["compose.yaml"] else "apiVersion:")]
            assert all(line.startswith("# ") for line in head.splitlines())
    first, *rest = found["Modelfile"].split("\n")
    assert first == f"FROM ./{asked.gguf.name}"
    assert [line.split(" ")[0] for line in rest] == ["PARAMETER", "PARAMETER", "PARAMETER", "TEMPLATE", "SYSTEM", ""]


@pytest.mark.parametrize("name", ["7b", "a." + "x" * 60, "a_-_", "A.B_c"])
def test_names_in_the_cluster_are_dns_labels(name: str, artifacts: dict[str, Path]) -> None:
    text = files_of(RUNTIMES["ollama"], Deployment(artifacts["q8_0"], name))["kubernetes.yaml"]
    for manifest in yaml.safe_load_all(text):
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", manifest["metadata"]["name"])


def test_a_pipe_or_a_folder_is_no_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/m.gguf").mkdir()
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/m.gguf")
    for name in ("folder", "pipe"):
        with pytest.raises(UserError, match=r"m\.gguf in .* is not a regular file"):
            deployment(tmp_path / name)
