# The server on Nomad, in a container that is given /dev/kvm.
#
#   nomad var put nomad/jobs/microvm token=@PATH
#   nomad job run deploy/nomad/microvm.nomad.hcl

variable "image" {
  type    = string
  default = "registry.example.com/microvm:0.1.0"
}

# The group of /dev/kvm on the clients: stat -c %g /dev/kvm
variable "kvm_group" {
  type    = string
  default = "106"
}

job "microvm" {
  datacenters = ["*"]
  type        = "service"

  # Clients whose processors virtualise say so: meta { kvm = "true" } in their configuration.
  constraint {
    attribute = "${meta.kvm}"
    value     = "true"
  }

  update {
    max_parallel     = 1
    canary           = 1
    auto_promote     = true
    auto_revert      = true
    health_check     = "checks"
    min_healthy_time = "15s"
    healthy_deadline = "3m"
  }

  group "microvm" {
    count = 2

    spread {
      attribute = "${node.unique.id}"
    }

    network {
      mode = "bridge"
      port "http" {
        to = 8080
      }
    }

    # Modules and the history of calls, moved along where that is possible.
    ephemeral_disk {
      size    = 4096
      sticky  = true
      migrate = true
    }

    service {
      name     = "microvm"
      port     = "http"
      provider = "nomad"

      check {
        name     = "ready"
        type     = "http"
        path     = "/health/ready"
        interval = "5s"
        timeout  = "2s"
      }

      check {
        name      = "live"
        type      = "http"
        path      = "/health/live"
        interval  = "10s"
        timeout   = "5s"
        on_update = "ignore"

        check_restart {
          limit = 3
          grace = "60s"
        }
      }
    }

    # By nomad-autoscaler, with Prometheus as its source.
    scaling {
      enabled = true
      min     = 2
      max     = 16

      policy {
        cooldown            = "2m"
        evaluation_interval = "15s"

        check "queued_calls" {
          source = "prometheus"
          query  = "avg(avg_over_time(microvm_supervisor_queued_calls[1m]))"

          strategy "target-value" {
            target = 8
          }
        }
      }
    }

    task "server" {
      driver = "docker"
      user   = "10001"

      # Longer than the longest time limit of a call.
      kill_timeout = "90s"

      config {
        image           = var.image
        ports           = ["http"]
        args            = ["serve", "--listen", "0.0.0.0:8080", "--token-file", "/secrets/token"]
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
        readonly_rootfs = true
        group_add       = [var.kvm_group]

        devices = [
          {
            host_path          = "/dev/kvm"
            container_path     = "/dev/kvm"
            cgroup_permissions = "rw"
          }
        ]

        mount {
          type   = "bind"
          source = "../alloc/data"
          target = "/var/lib/microvm"
        }

        mount {
          type   = "tmpfs"
          target = "/tmp"
          tmpfs_options {
            size = 1073741824
          }
        }
      }

      template {
        data        = "{{ with nomadVar \"nomad/jobs/microvm\" }}{{ .token }}{{ end }}"
        destination = "secrets/token"
        perms       = "0440"
        gid         = 10001
        change_mode = "restart"
      }

      resources {
        cpu    = 8000
        memory = 4096
      }
    }
  }
}
