{{/* What the schema cannot say: values that contradict each other. Each message says what was found, and what to set. */}}
{{- define "engineroom.checks" -}}
{{- $engine := .Values.engine }}
{{- $environment := $engine.environment }}
{{- $nodes := int $engine.nodes }}
{{- $gpus := int $engine.gpus }}
{{- $devices := mul $nodes (max $gpus 1) }}
{{- $parallel := mul (int (dig "LAUNCH_TP" "1" $environment)) (int (dig "LAUNCH_PP" "1" $environment)) }}
{{- if ne $devices $parallel }}
{{- fail (printf "engine.nodes %d with %d GPUs each are %d devices, and LAUNCH_TP times LAUNCH_PP in engine.environment is %d: make them equal" $nodes $gpus $devices $parallel) }}
{{- end }}
{{- range $name, $wanted := dict "LAUNCH_NODES" $nodes "LAUNCH_GPUS" $gpus }}
{{- if and (hasKey $environment $name) (ne (int (get $environment $name)) $wanted) }}
{{- fail (printf "%s in engine.environment is %s, and engine.%s is %d: make them equal" $name (get $environment $name) (trimPrefix "LAUNCH_" $name | lower) $wanted) }}
{{- end }}
{{- end }}

{{- with get $engine.nodeSelector "nvidia.com/gpu.count" }}
{{- if lt (int .) $gpus }}
{{- fail (printf "engine.nodeSelector takes nodes with %s GPUs, and engine.gpus is %d: choose other nodes" . $gpus) }}
{{- end }}
{{- end }}
{{- range $name := list "LAUNCH_ROLE" "LAUNCH_HEAD" "LAUNCH_HOST" "LAUNCH_PORT" }}
{{- if hasKey $environment $name }}
{{- fail (printf "%s in engine.environment: the chart decides it" $name) }}
{{- end }}
{{- end }}
{{- range $name := list "HF_TOKEN" "LAUNCH_CLUSTER_TOKEN" "LAUNCH_API_KEY" }}
{{- if hasKey $environment $name }}
{{- fail (printf "%s in engine.environment could be read by everybody who may read the release: make a Secret and name it in engine.secrets" $name) }}
{{- end }}
{{- end }}
{{- range $name := list "WEBUI_URL" "CORS_ALLOW_ORIGIN" "OPENAI_API_BASE_URLS" "DEFAULT_MODELS" }}
{{- if hasKey $.Values.page.environment $name }}
{{- fail (printf "%s in page.environment: the chart decides it, from page.url and ingress.page" $name) }}
{{- end }}
{{- end }}
{{- range $name := list "GATEWAY_ENGINES" "GATEWAY_PAGE" "GATEWAY_LISTEN" "GATEWAY_DRAIN_SECONDS" "GATEWAY_KEYS_FILE" "GATEWAY_CERTIFICATE_FILE" "GATEWAY_CERTIFICATE_KEY_FILE" }}
{{- if hasKey $.Values.gateway.environment $name }}
{{- fail (printf "%s in gateway.environment: the chart decides it" $name) }}
{{- end }}
{{- end }}

{{- if include "engineroom.clustered" . }}
{{- if not (hasKey $environment "LAUNCH_NODES") }}
{{- fail (printf "engine.nodes is %d: set LAUNCH_NODES in engine.environment to the same" $nodes) }}
{{- end }}
{{- if not $engine.secrets.clusterToken }}
{{- fail "a server of several nodes needs engine.secrets.clusterToken: whoever joins can run programs on the other nodes" }}
{{- end }}
{{- if include "engineroom.several" . }}
{{- fail (printf "engine.replicas and autoscaling are for servers of one node: this one has %d, a replica would be a whole group of pods that come and go together, and StatefulSets have no groups. LeaderWorkerSet has: engineroom jobs STACK --to lws" $nodes) }}
{{- end }}
{{- end }}

{{- if and (ne .Values.storage.accessMode "ReadWriteMany") (or (include "engineroom.clustered" .) (include "engineroom.several" .)) }}
{{- fail (printf "storage.accessMode is %s, and pods on several machines share weights and caches: set ReadWriteMany, and a storage.class that has it" .Values.storage.accessMode) }}
{{- end }}

{{- with .Values.autoscaling }}
{{- if and .kind (not (get .gauges .metric)) }}
{{- fail (printf "autoscaling.kind is %s, and this release of the engine has no Prometheus gauge for autoscaling.metric %s: leave autoscaling.kind empty" .kind .metric) }}
{{- end }}
{{- if gt (int .min) (int .max) }}
{{- fail (printf "autoscaling.min is %d and autoscaling.max %d: max must not be less" (int .min) (int .max)) }}
{{- end }}
{{- end }}

{{- with .Values.ingress }}
{{- if and .page.host (eq .page.host .api.host) }}
{{- fail (printf "ingress.page.host and ingress.api.host are both %s: give the API a name of its own" .page.host) }}
{{- end }}
{{- end }}
{{- end }}
