"""Write graph.pbtxt and the server configuration for OpenVINO Model Server (OVMS)."""

import json
from pathlib import Path
from typing import Literal

from intel_ft.files import write_json, write_text

Device = Literal["CPU", "GPU", "NPU"]

# The node of OVMS's "Efficient LLM Serving" reference (2026), which says to change only
# node_options.
_GRAPH = """\
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"

node: {{
  name: "LLMExecutor"
  calculator: "HttpLLMCalculator"
  input_stream: "LOOPBACK:loopback"
  input_stream: "HTTP_REQUEST_PAYLOAD:input"
  input_side_packet: "LLM_NODE_RESOURCES:llm"
  output_stream: "LOOPBACK:loopback"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  input_stream_info: {{
    tag_index: "LOOPBACK:0",
    back_edge: true
  }}
  node_options: {{
    [type.googleapis.com / mediapipe.LLMCalculatorOptions]: {{
      models_path: "./",
      plugin_config: '{plugin}',
      device: "{device}"
    }}
  }}
  input_stream_handler {{
    input_stream_handler: "SyncSetInputStreamHandler",
    options {{
      [mediapipe.SyncSetInputStreamHandlerOptions.ext] {{
        sync_set {{
          tag_index: "LOOPBACK:0"
        }}
      }}
    }}
  }}
}}
"""


def write_ovms(folder: Path, name: str, device: Device, kv_cache: str) -> None:
    """Write graph.pbtxt, and ovms_config.json that serves `folder` as `name`.

    Start with `ovms --config_path folder/ovms_config.json` or `ovms --model_path folder
    --model_name name`. The name config.json is taken: Optimum-Intel and OVMS read the model's.
    """
    plugin = {} if kv_cache == "auto" else {"KV_CACHE_PRECISION": kv_cache}
    write_text(folder / "graph.pbtxt", _GRAPH.format(plugin=json.dumps(plugin), device=device))
    servable = {"name": name, "base_path": "."}
    write_json(
        folder / "ovms_config.json",
        {"model_config_list": [], "mediapipe_config_list": [servable]},
    )
