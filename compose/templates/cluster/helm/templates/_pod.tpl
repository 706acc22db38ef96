{{/* An engine's pod: (dict "root" $ "role" "head" "environment" (dict …)). One launcher, with all the GPUs that a server takes of a node. */}}
{{- define "engineroom.pod" -}}
{{- $engine := .root.Values.engine }}
{{- $storage := .root.Values.storage }}
{{- $name := include "engineroom.name" .root }}
{{- $secrets := list }}
{{- with $engine.secrets.hfToken }}
{{- $secrets = append $secrets (dict "name" . "file" "hf_token" "variable" "HF_TOKEN_FILE") }}
{{- end }}
{{- with $engine.secrets.clusterToken }}
{{- $secrets = append $secrets (dict "name" . "file" "cluster_token" "variable" "LAUNCH_CLUSTER_TOKEN_FILE") }}
{{- end }}
{{- $start := int (include "engineroom.startSeconds" .root) -}}
metadata:
  labels:
    {{- include "engineroom.selector" (dict "root" .root "component" "engine" "role" .role) | nindent 4 }}
  {{- if .root.Values.autoscaling.kind }}
  annotations: # the usual ones; the Prometheus operator takes a PodMonitor instead
    prometheus.io/scrape: "true"
    prometheus.io/port: "8000"
    prometheus.io/path: /metrics
  {{- end }}
spec:
  terminationGracePeriodSeconds: {{ include "engineroom.graceSeconds" .root }}
  {{- include "engineroom.podSecurity" . | nindent 2 }}
  {{- if $engine.nodeSelector }}
  nodeSelector:
    {{- toYaml $engine.nodeSelector | nindent 4 }}
  {{- else if $engine.nodeRules }}
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms:
          - matchExpressions:
              {{- toYaml $engine.nodeRules | nindent 14 }}
  {{- end }}
  {{- if $engine.gpus }}
  tolerations:
    - { key: nvidia.com/gpu, operator: Exists, effect: NoSchedule }
  {{- end }}
  containers:
    - name: engine
      image: {{ $engine.image | quote }}
      env:
        {{- range $key, $value := $engine.environment }}
        - { name: {{ $key }}, value: {{ $value | quote }} }
        {{- end }}
        {{- range $secrets }}
        - { name: {{ .variable }}, value: /run/engineroom/{{ .file }} }
        {{- end }}
        {{- range $key, $value := .environment }}
        - { name: {{ $key }}, value: {{ $value | quote }} }
        {{- end }}
      ports:
        - { name: http, containerPort: 8000 }
      resources:
        requests: { cpu: {{ $engine.cpus | quote }}, memory: {{ $engine.memoryGiB }}Gi }
        {{- with $engine.gpus }}
        limits: { nvidia.com/gpu: {{ . | quote }} }
        {{- end }}
      volumeMounts:
        - { name: caches, mountPath: /cache }
        {{- if $storage.weightsGiB }}
        - { name: weights, mountPath: /cache/huggingface }
        {{- end }}
        {{- if $storage.models }}
        - { name: models, mountPath: /models, readOnly: true }
        {{- end }}
        - { name: shm, mountPath: /dev/shm }
        - { name: tmp, mountPath: /tmp }
        {{- if $secrets }}
        - { name: secrets, mountPath: /run/engineroom, readOnly: true }
        {{- end }}
      startupProbe: # until the first token, and a minute more: the launcher's own deadline comes first and says why
        exec: { command: [launch, health, --ready] }
        periodSeconds: 10
        timeoutSeconds: 60
        failureThreshold: {{ div (add $start 69) 10 }}
      readinessProbe: # a token every half minute
        exec: { command: [launch, health, --ready] }
        periodSeconds: 30
        timeoutSeconds: 60
        failureThreshold: 3
      livenessProbe: # the launcher itself ends an engine that hangs
        exec: { command: [launch, health] }
        periodSeconds: 30
        timeoutSeconds: 20
        failureThreshold: 4
      lifecycle: # until every node has heard that the pod is leaving
        preStop: { exec: { command: [sleep, "5"] } }
      terminationMessagePath: /dev/termination-log # where the launcher says why it ended
      {{- include "engineroom.containerSecurity" . | nindent 6 }}
  volumes:
    - name: caches
      persistentVolumeClaim: { claimName: {{ $name }}-caches }
    {{- if $storage.weightsGiB }}
    - name: weights
      persistentVolumeClaim: { claimName: {{ $name }}-weights }
    {{- end }}
    {{- with $storage.models }}
    - name: models
      persistentVolumeClaim: { claimName: {{ . | quote }}, readOnly: true }
    {{- end }}
    - name: shm
      emptyDir: { medium: Memory, sizeLimit: {{ $engine.shmGiB }}Gi }
    - name: tmp
      emptyDir: {}
    {{- if $secrets }}
    - name: secrets
      projected:
        defaultMode: 288 # 0440
        sources:
          {{- range $secrets }}
          - secret: { name: {{ .name | quote }}, items: [{ key: token, path: {{ .file }} }] }
          {{- end }}
    {{- end }}
{{- end }}
