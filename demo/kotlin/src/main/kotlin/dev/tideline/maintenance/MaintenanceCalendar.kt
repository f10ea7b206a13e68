/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.maintenance

import dev.tideline.core.Events
import dev.tideline.core.InMemoryStore
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Store
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.change
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.orElse
import dev.tideline.core.requireFound
import dev.tideline.core.requireThat
import dev.tideline.core.then

/** Identifies a machine, a buoy or anything else that wears out. */
@JvmInline
value class AssetId(val raw: String) {
    override fun toString(): String = raw
}

/** Describes an asset by the hours it has run. */
data class Asset(val id: AssetId, val name: String, val runningHours: Double)

/** Says when a job is due, by the calendar or by the hours that the asset has run. */
sealed interface DueRule {
    /** Makes the job due after so many days. */
    data class EveryDays(val days: Int) : DueRule

    /** Makes the job due after so many running hours. */
    data class EveryHours(val hours: Double) : DueRule
}

/** Describes a job that has to be done again and again. */
data class Job(
    val asset: AssetId,
    val title: String,
    val rule: DueRule,
    val lastDone: Moment,
    val lastHours: Double,
) {
    /** Tells how worn the job is, where 1.0 means that it is due right now. */
    fun wearAt(moment: Moment, runningHours: Double): Double =
        when (rule) {
            is DueRule.EveryDays -> (moment - lastDone).hours / (24.0 * rule.days)
            is DueRule.EveryHours -> (runningHours - lastHours) / rule.hours
        }
}

/** Tells that a job was carried out. */
data class JobFinished(val asset: AssetId, val title: String, override val at: Moment) : TideEvent

/** Keeps the assets. */
interface AssetStore : Store<AssetId, Asset>

/** Keeps the assets in memory. */
class InMemoryAssetStore : InMemoryStore<AssetId, Asset>("asset", Asset::id), AssetStore

/** Knows every recurring job and says which one cannot wait. */
class MaintenanceCalendar(
    private val assets: AssetStore,
    private val events: Events,
    private val clock: TideClock,
) {
    private val log = ledger<MaintenanceCalendar>()
    private val jobs = mutableListOf<Job>()

    /** Schedules a recurring job that counts from now on. */
    fun schedule(id: AssetId, title: String, rule: DueRule): Outcome<Job> =
        assets.findById(id)
            .then { asset ->
                requireThat(jobs.none { it.asset == id && it.title == title }, Reason.DUPLICATE) {
                    "${asset.name} already has a job called $title"
                }.into {
                    Job(
                        asset = id,
                        title = title,
                        rule = rule,
                        lastDone = clock.now(),
                        lastHours = asset.runningHours,
                    )
                }
            }
            .onDone {
                jobs += it
                log.note("job.scheduled", "asset" to id, "title" to title)
            }

    /** Adds running hours to an asset. */
    fun run(id: AssetId, hours: Double): Outcome<Asset> =
        requireThat(hours >= 0, Reason.INVALID) { "asset $id cannot run backwards" }
            .then { assets.change(id) { it.copy(runningHours = it.runningHours + hours) } }

    /** Finishes a job, which then starts to wear anew. */
    fun finish(id: AssetId, title: String): Outcome<Job> =
        requireFound(jobs.firstOrNull { it.asset == id && it.title == title }) { "$id has no job $title" }
            .then { job ->
                assets.findById(id).into { asset ->
                    job.copy(lastDone = clock.now(), lastHours = asset.runningHours)
                }
            }
            .onDone { fresh ->
                jobs.replaceAll { if (it.asset == id && it.title == title) fresh else it }
                log.note("job.finished", "asset" to id, "title" to title)
                events.publish(JobFinished(asset = id, title = title, at = clock.now()))
            }

    /** Lists the jobs that are worn at least as much as asked, the worst first. */
    fun listDue(wear: Double = 1.0): List<Job> =
        jobs.map { it to wearOf(it) }
            .filter { (_, worn) -> worn >= wear }
            .sortedByDescending { (_, worn) -> worn }
            .map { (job, _) -> job }

    private fun wearOf(job: Job): Double =
        assets.findById(job.asset)
            .into { job.wearAt(clock.now(), it.runningHours) }
            .orElse { 0.0 }
}
